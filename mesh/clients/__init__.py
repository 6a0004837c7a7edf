"""Python clients of the workers, one module per service, each with an async and a sync class of the same names.

Names are imported on first use: a client that needs numpy or docling-core costs nothing to a
process that does not use it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mesh.hop import HopSettings, HopStatus
from mesh.resilience import CircuitBreaker

if TYPE_CHECKING:
    from mesh.clients.chunking import AsyncChunkingServiceClient, ChunkingServiceClient
    from mesh.clients.docling import DoclingChunker
    from mesh.clients.embedding import AsyncEmbeddingServiceClient, EmbeddingServiceClient
    from mesh.clients.gpu import AsyncGPUServiceClient, GPUServiceClient
    from mesh.clients.llm import AsyncLLMServiceClient, LLMServiceClient
    from mesh.clients.reranking import AsyncRerankingServiceClient, RerankingServiceClient
    from mesh.tls.client import ClientTls

__all__ = [
    "AsyncChunkingServiceClient",
    "AsyncEmbeddingServiceClient",
    "AsyncGPUServiceClient",
    "AsyncLLMServiceClient",
    "AsyncRerankingServiceClient",
    "ChunkingServiceClient",
    "CircuitBreaker",
    "ClientTls",
    "DoclingChunker",
    "EmbeddingServiceClient",
    "GPUServiceClient",
    "HopSettings",
    "HopStatus",
    "LLMServiceClient",
    "RerankingServiceClient",
]

_MODULES = {
    "AsyncChunkingServiceClient": "chunking",
    "ChunkingServiceClient": "chunking",
    "DoclingChunker": "docling",
    "AsyncEmbeddingServiceClient": "embedding",
    "EmbeddingServiceClient": "embedding",
    "AsyncGPUServiceClient": "gpu",
    "GPUServiceClient": "gpu",
    "AsyncLLMServiceClient": "llm",
    "LLMServiceClient": "llm",
    "AsyncRerankingServiceClient": "reranking",
    "RerankingServiceClient": "reranking",
}


def __getattr__(name: str) -> Any:
    if name == "ClientTls":
        return import_module("mesh.tls.client").ClientTls
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"mesh.clients.{_MODULES[name]}"), name)
