"""The API process of before: torch, the models and the routes in one. Bodies and answers are those of the gateway.

Only what such a process could do: no priorities, no streams, no documents but texts, no language model, no breaker.
What goes wrong inside a model goes wrong in this process.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from mesh.errors import MeshError
from previous.chunking.chunkers.semantic import SemanticSplitterChunker
from previous.services.embedding import EmbeddingService
from previous.services.gpu import GPUManager
from previous.services.reranking import RerankingService
from previous.settings import PreviousSettings


class EmbeddingsBody(BaseModel):
    """OpenAI's, as far as it was served."""

    input: str | list[str]
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"


class RerankBody(BaseModel):
    """Cohere's, as far as it was served."""

    query: str
    documents: list[str]
    model: str = ""
    top_n: int | None = None


class ChunkBody(BaseModel):
    """A text to be cut."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the process holds; a route whose service is None is not there."""

    embedding: EmbeddingService | None = None
    reranking: RerankingService | None = None
    chunking: SemanticSplitterChunker | None = None
    gpu: GPUManager | None = None


def load_services(settings: PreviousSettings, wanted: frozenset[str]) -> Services:
    """Load the models of the services named in ``wanted``. Blocks.

    Raises:
        ModelUnusable: a model is missing, damaged or of the wrong kind.
    """
    embedding, reranking, chunking = settings.embedding, settings.reranking, settings.chunking.semantic_chunker

    def embedder() -> EmbeddingService:
        return EmbeddingService(embedding.model_name, device=settings.device(gpu_enabled=embedding.gpu_enabled))

    def reranker() -> RerankingService:
        return RerankingService(reranking.model_name, device=settings.device(gpu_enabled=reranking.gpu_enabled))

    def chunker() -> SemanticSplitterChunker:
        embeds = EmbeddingService(chunking.model_name, device=settings.device(gpu_enabled=chunking.gpu_enabled))
        return SemanticSplitterChunker(gpu_semantic_checks=True, model_name=chunking.model_name, embedder=embeds)

    makers: dict[str, Callable[[], Any]] = {
        "embedding": embedder, "reranking": reranker, "chunking": chunker, "gpu": GPUManager,
    }  # fmt: skip
    return Services(**{name: make() for name, make in makers.items() if name in wanted})


def create_app(services: Services) -> FastAPI:
    """The routes of what is there. Handlers are functions, so that each runs on a thread of its own."""
    app = FastAPI(title="The API process of before", openapi_url=None)

    @app.exception_handler(MeshError)
    def refused(_: Request, error: MeshError) -> JSONResponse:
        return JSONResponse({"error": {"message": error.message, "code": error.reason.lower()}}, error.http_status)

    @app.get("/health/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    if (embedder := services.embedding) is not None:

        @app.post("/v1/embeddings", response_model=None)
        def embeddings(body: EmbeddingsBody) -> dict[str, Any]:
            texts = [body.input] if isinstance(body.input, str) else body.input
            vectors = embedder.generate_embeddings(texts)
            rows = [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                    if body.encoding_format == "base64"
                    else vector.tolist(),
                }
                for index, vector in enumerate(vectors)
            ]
            return {"object": "list", "model": embedder.model.name, "data": rows}

    if (reranker := services.reranking) is not None:

        @app.post("/v2/rerank", response_model=None)
        def rerank(body: RerankBody) -> dict[str, Any]:
            scores = reranker.rerank(body.query, body.documents)
            best_first = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
            return {"results": [{"index": index, "relevance_score": scores[index]} for index in best_first]}

    if (chunker := services.chunking) is not None:

        @app.post("/v1/chunk", response_model=None)
        def chunk(body: ChunkBody) -> dict[str, Any]:
            return {"chunks": [asdict(each) for each in chunker.chunk(body.text)]}

    if (manager := services.gpu) is not None:

        @app.get("/v1/gpu", response_model=None)
        def gpu() -> dict[str, Any]:
            return asdict(manager.get_gpu_status())

    return app
