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
TRUNCATION_UNSPECIFIED: Truncation
TRUNCATION_END: Truncation
TRUNCATION_START: Truncation
TRUNCATION_REFUSE: Truncation

class RerankRequest(_message.Message):
    __slots__ = ("model", "query", "documents", "max_tokens_per_document", "truncation", "raw_scores")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_PER_DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    RAW_SCORES_FIELD_NUMBER: _ClassVar[int]
    model: str
    query: str
    documents: _containers.RepeatedScalarFieldContainer[str]
    max_tokens_per_document: int
    truncation: Truncation
    raw_scores: bool
    def __init__(self, model: _Optional[str] = ..., query: _Optional[str] = ..., documents: _Optional[_Iterable[str]] = ..., max_tokens_per_document: _Optional[int] = ..., truncation: _Optional[_Union[Truncation, str]] = ..., raw_scores: _Optional[bool] = ...) -> None: ...

class RerankResponse(_message.Message):
    __slots__ = ("model", "scores", "usage", "timings", "truncated_documents")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    scores: _containers.RepeatedScalarFieldContainer[float]
    usage: Usage
    timings: Timings
    truncated_documents: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., scores: _Optional[_Iterable[float]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., truncated_documents: _Optional[_Iterable[int]] = ...) -> None: ...

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
    __slots__ = ("name", "aliases", "revision", "source", "method", "max_input_tokens", "engine", "precision", "device", "fidelity_min_cosine", "fidelity_mean_cosine", "check_documents_per_second", "profile", "instruction")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    MAX_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_MIN_COSINE_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_MEAN_COSINE_FIELD_NUMBER: _ClassVar[int]
    CHECK_DOCUMENTS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    revision: str
    source: str
    method: str
    max_input_tokens: int
    engine: str
    precision: str
    device: str
    fidelity_min_cosine: float
    fidelity_mean_cosine: float
    check_documents_per_second: float
    profile: str
    instruction: str
    def __init__(self, name: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., revision: _Optional[str] = ..., source: _Optional[str] = ..., method: _Optional[str] = ..., max_input_tokens: _Optional[int] = ..., engine: _Optional[str] = ..., precision: _Optional[str] = ..., device: _Optional[str] = ..., fidelity_min_cosine: _Optional[float] = ..., fidelity_mean_cosine: _Optional[float] = ..., check_documents_per_second: _Optional[float] = ..., profile: _Optional[str] = ..., instruction: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_documents_per_request", "max_tokens_per_request", "max_request_bytes", "max_queued_tokens")
    MAX_DOCUMENTS_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_documents_per_request: int
    max_tokens_per_request: int
    max_request_bytes: int
    max_queued_tokens: int
    def __init__(self, max_documents_per_request: _Optional[int] = ..., max_tokens_per_request: _Optional[int] = ..., max_request_bytes: _Optional[int] = ..., max_queued_tokens: _Optional[int] = ...) -> None: ...
