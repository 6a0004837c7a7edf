"""The gateway's baseline, and the worker behind both: FastAPI → grpc.aio → echo, with nothing else in it.

``front`` is the least that answers ``/v1/embeddings`` from a worker: no breaker, no limiter, no probe, no deadline of
the caller's, no metrics, no log line, no request id, no typed error. ``echo`` is a worker that does no work: it answers
every text with the same vector, so that what is measured is the way there and back. With
MESH_TLS_CA and its like it wants and shows certificates.

    python -m bench.bare echo --port 61001
    python -m bench.bare front --port 61002 --worker 127.0.0.1:61001
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import struct
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop
from pydantic import BaseModel

from mesh.channel import SERVER_OPTIONS
from mesh.pb.embedding.v1 import embedding_pb2 as pb
from mesh.pb.embedding.v1.embedding_pb2_grpc import (
    EmbeddingServiceServicer,
    EmbeddingServiceStub,
    add_EmbeddingServiceServicer_to_server,
)

DIMENSIONS = 384
_ROW_BYTES = DIMENSIONS * 4
_ROW = struct.pack(f"<{DIMENSIONS}f", *(1 / (number + 1) for number in range(DIMENSIONS)))
_TLS = ("CA", "CERTIFICATE", "KEY")
_SERVED = (
    "embedding.v1.EmbeddingService",
    "reranking.v1.RerankingService",
    "chunking.v1.ChunkingService",
    "gpu.v1.GpuService",
    "llm.v1.LlmService",
)


class EmbeddingsBody(BaseModel):
    """What the front reads."""

    input: str | list[str]
    model: str = ""
    encoding_format: str = "float"


class Echo(EmbeddingServiceServicer):
    """Answers every text with the same vector."""

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: ARG002
        """As many rows as texts."""
        rows = len(request.texts)
        return pb.EmbedResponse(
            model="echo", rows=rows, dim=DIMENSIONS, vectors=_ROW * rows, usage=pb.Usage(tokens=rows)
        )


async def serve_echo(port: int) -> None:
    """Serve until ended. Says SERVING for every capability, so that a gateway's other hops are quiet too."""
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_EmbeddingServiceServicer_to_server(Echo(), server)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for service in _SERVED:
        await servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    if (credentials := _credentials()) is not None:
        server.add_secure_port(f"127.0.0.1:{port}", credentials)
    else:
        server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def _credentials() -> grpc.ServerCredentials | None:
    if "MESH_TLS_CA" not in os.environ:
        return None
    ca, certificate, key = (Path(os.environ[f"MESH_TLS_{name}"]).read_bytes() for name in _TLS)
    return grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)


def serve_front(port: int, worker: str) -> None:
    """Serve until ended."""
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI()
    stub: Any = None

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/embeddings", response_model=None)
    async def embeddings(body: EmbeddingsBody) -> dict[str, Any]:
        nonlocal stub
        if stub is None:
            stub = EmbeddingServiceStub(grpc.aio.insecure_channel(worker))
        texts = [body.input] if isinstance(body.input, str) else body.input
        reply = await stub.Embed(pb.EmbedRequest(model=body.model, texts=texts), timeout=30)
        rows = [reply.vectors[start : start + _ROW_BYTES] for start in range(0, len(reply.vectors), _ROW_BYTES)]
        vectors: list[Any] = (
            [base64.b64encode(row).decode("ascii") for row in rows]
            if body.encoding_format == "base64"
            else [struct.unpack(f"<{DIMENSIONS}f", row) for row in rows]
        )
        return {
            "object": "list",
            "model": reply.model,
            "data": [
                {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": reply.usage.tokens, "total_tokens": reply.usage.tokens},
        }

    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False, log_level="warning")


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(prog="python -m bench.bare", description=__doc__.splitlines()[0])
    parser.add_argument("role", choices=["echo", "front"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--worker", default="", help="where the front finds the echo")
    options = parser.parse_args()
    if options.role == "front":
        serve_front(options.port, options.worker)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_echo(options.port))


if __name__ == "__main__":
    main()
