"""The settings of the gpu-services worker, read once in `__main__`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from gpu_services.chunking.events import Limits
from gpu_services.chunking.pool import PoolLimits
from gpu_services.chunking.service import ChunkingConfig
from inference.models import DEFAULT_EMBEDDING_MODEL
from mesh.settings import Names, WorkerSettings

_MIB = 1024 * 1024


class GpuServicesSettings(WorkerSettings):
    """What the worker for chunking and GPU status can be told, by variables that begin with GPU_SERVICES_."""

    model_config = SettingsConfigDict(env_prefix="GPU_SERVICES_")

    port: int = Field(50053, ge=0, le=65535, description="gRPC port; 0 lets the system choose one.")
    default_deadline_seconds: float = Field(
        300.0, gt=0, le=3600, description="Deadline of a call that came without one; a long document takes its time."
    )
    canary_interval_seconds: float = Field(
        3.0, gt=0, le=3600, description="An idle capability proves itself by one small document or reading this often."
    )
    canary_retry_seconds: float = Field(
        3.0,
        gt=0,
        le=3600,
        description="Pause after a failed canary, until the next one: a process that failed is replaced by then. Three "
        "in a row are the end: the process exits.",
    )
    pdf_pipeline: Literal["auto", "native", "layout"] = Field(
        "auto",
        description="How PDFs are read: native needs no model, layout runs docling's layout model, auto takes layout "
        "where its model is on this machine.",
    )
    artifacts_path: str = Field("", description="Folder with docling's models; empty means the model hub's cache.")
    tokenizers: Names = Field(
        (DEFAULT_EMBEDDING_MODEL,),
        min_length=1,
        description="Embedding models whose tokens can be counted, by hub name or folder, separated by commas; the "
        "first is the default.",
    )
    tokenizer_aliases: dict[str, str] = Field(
        {}, description="Other names of those tokenizers, as a JSON object from alias to name."
    )
    spool_path: str = Field(
        "", description="Folder for uploads while they are worked on; empty means the system's own."
    )
    children: int = Field(
        1,
        ge=1,
        le=64,
        description="Documents of one priority that are converted at once, each in a process of its own.",
    )
    reserved_children: int = Field(
        1,
        ge=0,
        le=64,
        description="More such processes, so that bulk documents with all of theirs leave interactive ones so many; "
        "with 0 these wait until a bulk document is done.",
    )
    documents_per_child: int = Field(
        256,
        ge=1,
        le=10_000,
        description="Documents after which such a process is replaced, as soon as its successor is warm; 1 gives every "
        "document a fresh one, for which it may have to wait.",
    )
    max_queued_documents: int = Field(
        16, ge=0, le=1000, description="Documents that may wait; one more is refused as overload."
    )
    max_document_bytes: int = Field(64 * _MIB, ge=1024, description="Largest upload, in bytes.")
    max_unpacked_bytes: int = Field(
        256 * _MIB,
        ge=1024,
        description="Most bytes that an Office document may unpack to, and longest conversion result.",
    )
    max_pages: int = Field(2000, ge=1, le=100_000, description="Most pages, slides or sheets of a document.")
    max_document_seconds: float = Field(300.0, gt=0, le=3600, description="Longest time that one document may take.")
    max_memory_bytes: int = Field(
        0,
        ge=0,
        description="Address space of a document's process, in bytes; 0 means 2 GiB, with the layout pipeline 8 GiB.",
    )
    window_pages: int = Field(
        16, ge=1, le=1000, description="Pages of a PDF that are converted before their chunks are sent."
    )

    def chunking(self) -> ChunkingConfig:
        """The part that chunking needs."""
        return ChunkingConfig(
            tokenizers=self.tokenizers,
            tokenizer_aliases=self.tokenizer_aliases,
            pdf_pipeline=self.pdf_pipeline,
            artifacts_path=self.artifacts_path,
            spool_path=self.spool_path,
            max_document_bytes=self.max_document_bytes,
            limits=Limits(
                max_pages=self.max_pages,
                max_unpacked_bytes=self.max_unpacked_bytes,
                max_seconds=self.max_document_seconds,
                max_memory_bytes=self.max_memory_bytes,
                window_pages=self.window_pages,
            ),
            pool=PoolLimits(
                children=self.children,
                reserved=self.reserved_children,
                max_queued=self.max_queued_documents,
                documents_per_child=self.documents_per_child,
            ),
        )
