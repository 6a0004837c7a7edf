from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChunkRequest(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: ChunkHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[ChunkHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ChunkHeader(_message.Message):
    __slots__ = ("filename", "media_type", "chunker", "max_tokens", "tokenizer", "size_bytes")
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    CHUNKER_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    filename: str
    media_type: str
    chunker: str
    max_tokens: int
    tokenizer: str
    size_bytes: int
    def __init__(self, filename: _Optional[str] = ..., media_type: _Optional[str] = ..., chunker: _Optional[str] = ..., max_tokens: _Optional[int] = ..., tokenizer: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class ChunkResponse(_message.Message):
    __slots__ = ("chunk", "finish", "progress")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    chunk: Chunk
    finish: ChunkFinish
    progress: ChunkProgress
    def __init__(self, chunk: _Optional[_Union[Chunk, _Mapping]] = ..., finish: _Optional[_Union[ChunkFinish, _Mapping]] = ..., progress: _Optional[_Union[ChunkProgress, _Mapping]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("index", "text", "headings", "pages", "tokens", "bbox", "contextualized_text")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    HEADINGS_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    BBOX_FIELD_NUMBER: _ClassVar[int]
    CONTEXTUALIZED_TEXT_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: str
    headings: _containers.RepeatedScalarFieldContainer[str]
    pages: _containers.RepeatedScalarFieldContainer[int]
    tokens: int
    bbox: _containers.RepeatedCompositeFieldContainer[BoundingBox]
    contextualized_text: str
    def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ..., headings: _Optional[_Iterable[str]] = ..., pages: _Optional[_Iterable[int]] = ..., tokens: _Optional[int] = ..., bbox: _Optional[_Iterable[_Union[BoundingBox, _Mapping]]] = ..., contextualized_text: _Optional[str] = ...) -> None: ...

class BoundingBox(_message.Message):
    __slots__ = ("page", "left", "top", "right", "bottom")
    PAGE_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FIELD_NUMBER: _ClassVar[int]
    page: int
    left: float
    top: float
    right: float
    bottom: float
    def __init__(self, page: _Optional[int] = ..., left: _Optional[float] = ..., top: _Optional[float] = ..., right: _Optional[float] = ..., bottom: _Optional[float] = ...) -> None: ...

class ChunkProgress(_message.Message):
    __slots__ = ("pages_done", "pages_total")
    PAGES_DONE_FIELD_NUMBER: _ClassVar[int]
    PAGES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    pages_done: int
    pages_total: int
    def __init__(self, pages_done: _Optional[int] = ..., pages_total: _Optional[int] = ...) -> None: ...

class ChunkFinish(_message.Message):
    __slots__ = ("document", "usage", "timings")
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    document: Document
    usage: Usage
    timings: Timings
    def __init__(self, document: _Optional[_Union[Document, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class Document(_message.Message):
    __slots__ = ("filename", "media_type", "pages", "title", "sha256", "size_bytes", "warnings")
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    filename: str
    media_type: str
    pages: int
    title: str
    sha256: str
    size_bytes: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, filename: _Optional[str] = ..., media_type: _Optional[str] = ..., pages: _Optional[int] = ..., title: _Optional[str] = ..., sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("chunks", "tokens", "characters")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    chunks: int
    tokens: int
    characters: int
    def __init__(self, chunks: _Optional[int] = ..., tokens: _Optional[int] = ..., characters: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("total_us", "queue_us", "conversion_us", "chunking_us", "first_chunk_us")
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    CONVERSION_US_FIELD_NUMBER: _ClassVar[int]
    CHUNKING_US_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_US_FIELD_NUMBER: _ClassVar[int]
    total_us: int
    queue_us: int
    conversion_us: int
    chunking_us: int
    first_chunk_us: int
    def __init__(self, total_us: _Optional[int] = ..., queue_us: _Optional[int] = ..., conversion_us: _Optional[int] = ..., chunking_us: _Optional[int] = ..., first_chunk_us: _Optional[int] = ...) -> None: ...

class ConvertRequest(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: ConvertHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[ConvertHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ConvertHeader(_message.Message):
    __slots__ = ("filename", "media_type", "size_bytes")
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    filename: str
    media_type: str
    size_bytes: int
    def __init__(self, filename: _Optional[str] = ..., media_type: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class ConvertResponse(_message.Message):
    __slots__ = ("data", "finish")
    DATA_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    finish: ConvertFinish
    def __init__(self, data: _Optional[bytes] = ..., finish: _Optional[_Union[ConvertFinish, _Mapping]] = ...) -> None: ...

class ConvertFinish(_message.Message):
    __slots__ = ("document", "timings", "schema_version")
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    document: Document
    timings: Timings
    schema_version: str
    def __init__(self, document: _Optional[_Union[Document, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., schema_version: _Optional[str] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoResponse(_message.Message):
    __slots__ = ("chunkers", "media_types", "pdf_pipeline", "tokenizers", "limits", "version", "docling_version")
    CHUNKERS_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPES_FIELD_NUMBER: _ClassVar[int]
    PDF_PIPELINE_FIELD_NUMBER: _ClassVar[int]
    TOKENIZERS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DOCLING_VERSION_FIELD_NUMBER: _ClassVar[int]
    chunkers: _containers.RepeatedCompositeFieldContainer[Chunker]
    media_types: _containers.RepeatedScalarFieldContainer[str]
    pdf_pipeline: str
    tokenizers: _containers.RepeatedScalarFieldContainer[str]
    limits: Limits
    version: str
    docling_version: str
    def __init__(self, chunkers: _Optional[_Iterable[_Union[Chunker, _Mapping]]] = ..., media_types: _Optional[_Iterable[str]] = ..., pdf_pipeline: _Optional[str] = ..., tokenizers: _Optional[_Iterable[str]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., version: _Optional[str] = ..., docling_version: _Optional[str] = ...) -> None: ...

class Chunker(_message.Message):
    __slots__ = ("name", "aliases", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    description: str
    def __init__(self, name: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., description: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_document_bytes", "max_pages", "max_unpacked_bytes", "max_seconds", "max_memory_bytes", "max_frame_bytes", "max_concurrent_documents", "max_queued_documents")
    MAX_DOCUMENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_UNPACKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    max_document_bytes: int
    max_pages: int
    max_unpacked_bytes: int
    max_seconds: int
    max_memory_bytes: int
    max_frame_bytes: int
    max_concurrent_documents: int
    max_queued_documents: int
    def __init__(self, max_document_bytes: _Optional[int] = ..., max_pages: _Optional[int] = ..., max_unpacked_bytes: _Optional[int] = ..., max_seconds: _Optional[int] = ..., max_memory_bytes: _Optional[int] = ..., max_frame_bytes: _Optional[int] = ..., max_concurrent_documents: _Optional[int] = ..., max_queued_documents: _Optional[int] = ...) -> None: ...
