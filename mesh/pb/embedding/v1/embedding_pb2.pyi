from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Truncation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRUNCATION_UNSPECIFIED: _ClassVar[Truncation]
    TRUNCATION_END: _ClassVar[Truncation]
    TRUNCATION_START: _ClassVar[Truncation]
    TRUNCATION_REFUSE: _ClassVar[Truncation]

class VectorFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VECTOR_FORMAT_UNSPECIFIED: _ClassVar[VectorFormat]
    VECTOR_FORMAT_BYTES: _ClassVar[VectorFormat]
    VECTOR_FORMAT_FLOATS: _ClassVar[VectorFormat]

class InputType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INPUT_TYPE_UNSPECIFIED: _ClassVar[InputType]
    INPUT_TYPE_QUERY: _ClassVar[InputType]
    INPUT_TYPE_DOCUMENT: _ClassVar[InputType]
    INPUT_TYPE_CLASSIFICATION: _ClassVar[InputType]
    INPUT_TYPE_CLUSTERING: _ClassVar[InputType]
    INPUT_TYPE_SIMILARITY: _ClassVar[InputType]
TRUNCATION_UNSPECIFIED: Truncation
TRUNCATION_END: Truncation
TRUNCATION_START: Truncation
TRUNCATION_REFUSE: Truncation
VECTOR_FORMAT_UNSPECIFIED: VectorFormat
VECTOR_FORMAT_BYTES: VectorFormat
VECTOR_FORMAT_FLOATS: VectorFormat
INPUT_TYPE_UNSPECIFIED: InputType
INPUT_TYPE_QUERY: InputType
INPUT_TYPE_DOCUMENT: InputType
INPUT_TYPE_CLASSIFICATION: InputType
INPUT_TYPE_CLUSTERING: InputType
INPUT_TYPE_SIMILARITY: InputType

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("model", "texts", "token_inputs", "dimensions", "normalize", "truncation", "format", "input_type", "prompt_name")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_INPUTS_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    INPUT_TYPE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_NAME_FIELD_NUMBER: _ClassVar[int]
    model: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    token_inputs: _containers.RepeatedCompositeFieldContainer[TokenIds]
    dimensions: int
    normalize: bool
    truncation: Truncation
    format: VectorFormat
    input_type: InputType
    prompt_name: str
    def __init__(self, model: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., token_inputs: _Optional[_Iterable[_Union[TokenIds, _Mapping]]] = ..., dimensions: _Optional[int] = ..., normalize: _Optional[bool] = ..., truncation: _Optional[_Union[Truncation, str]] = ..., format: _Optional[_Union[VectorFormat, str]] = ..., input_type: _Optional[_Union[InputType, str]] = ..., prompt_name: _Optional[str] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("model", "rows", "dim", "vectors", "readable_vectors", "usage", "timings", "truncated_inputs", "fingerprint", "input_tokens")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    READABLE_VECTORS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_INPUTS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model: str
    rows: int
    dim: int
    vectors: bytes
    readable_vectors: _containers.RepeatedCompositeFieldContainer[Vector]
    usage: Usage
    timings: Timings
    truncated_inputs: _containers.RepeatedScalarFieldContainer[int]
    fingerprint: str
    input_tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., rows: _Optional[int] = ..., dim: _Optional[int] = ..., vectors: _Optional[bytes] = ..., readable_vectors: _Optional[_Iterable[_Union[Vector, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., truncated_inputs: _Optional[_Iterable[int]] = ..., fingerprint: _Optional[str] = ..., input_tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class Vector(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("tokens", "characters")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    characters: int
    def __init__(self, tokens: _Optional[int] = ..., characters: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("total_us", "tokenization_us", "queue_us", "inference_us", "batch_size")
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    TOKENIZATION_US_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    total_us: int
    tokenization_us: int
    queue_us: int
    inference_us: int
    batch_size: int
    def __init__(self, total_us: _Optional[int] = ..., tokenization_us: _Optional[int] = ..., queue_us: _Optional[int] = ..., inference_us: _Optional[int] = ..., batch_size: _Optional[int] = ...) -> None: ...

class EmbedStreamRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: EmbedRequest
    def __init__(self, request: _Optional[_Union[EmbedRequest, _Mapping]] = ...) -> None: ...

class EmbedStreamResponse(_message.Message):
    __slots__ = ("response", "index")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    response: EmbedResponse
    index: int
    def __init__(self, response: _Optional[_Union[EmbedResponse, _Mapping]] = ..., index: _Optional[int] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoResponse(_message.Message):
    __slots__ = ("models", "limits", "version")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    limits: Limits
    version: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., version: _Optional[str] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "aliases", "revision", "source", "dimensions", "max_input_tokens", "engine", "precision", "device", "fidelity_min_cosine", "fidelity_mean_cosine", "check_texts_per_second", "pooling", "matryoshka_dimensions", "profile", "fingerprint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_MIN_COSINE_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_MEAN_COSINE_FIELD_NUMBER: _ClassVar[int]
    CHECK_TEXTS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    MATRYOSHKA_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    revision: str
    source: str
    dimensions: int
    max_input_tokens: int
    engine: str
    precision: str
    device: str
    fidelity_min_cosine: float
    fidelity_mean_cosine: float
    check_texts_per_second: float
    pooling: str
    matryoshka_dimensions: _containers.RepeatedScalarFieldContainer[int]
    profile: Profile
    fingerprint: str
    def __init__(self, name: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., revision: _Optional[str] = ..., source: _Optional[str] = ..., dimensions: _Optional[int] = ..., max_input_tokens: _Optional[int] = ..., engine: _Optional[str] = ..., precision: _Optional[str] = ..., device: _Optional[str] = ..., fidelity_min_cosine: _Optional[float] = ..., fidelity_mean_cosine: _Optional[float] = ..., check_texts_per_second: _Optional[float] = ..., pooling: _Optional[str] = ..., matryoshka_dimensions: _Optional[_Iterable[int]] = ..., profile: _Optional[_Union[Profile, _Mapping]] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class Profile(_message.Message):
    __slots__ = ("source", "prompts", "default_prompt", "normalize")
    class PromptsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_PROMPT_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    source: str
    prompts: _containers.ScalarMap[str, str]
    default_prompt: str
    normalize: bool
    def __init__(self, source: _Optional[str] = ..., prompts: _Optional[_Mapping[str, str]] = ..., default_prompt: _Optional[str] = ..., normalize: _Optional[bool] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_inputs_per_request", "max_tokens_per_request", "max_request_bytes", "max_queued_tokens")
    MAX_INPUTS_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_inputs_per_request: int
    max_tokens_per_request: int
    max_request_bytes: int
    max_queued_tokens: int
    def __init__(self, max_inputs_per_request: _Optional[int] = ..., max_tokens_per_request: _Optional[int] = ..., max_request_bytes: _Optional[int] = ..., max_queued_tokens: _Optional[int] = ...) -> None: ...
