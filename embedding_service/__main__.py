"""``python -m embedding_service``: serve until SIGTERM."""

from __future__ import annotations

from embedding_service.servicer import SERVICE, EmbeddingServicer
from embedding_service.settings import EmbeddingSettings
from embedding_service.worker import embedding_life
from mesh.serving import Capability, run


def make_capability(settings: EmbeddingSettings) -> Capability:
    """The worker's one capability."""
    life = embedding_life(settings)
    servicer = EmbeddingServicer(
        life,
        max_request_bytes=settings.max_message_bytes,
        max_stream_requests=settings.max_stream_requests,
    )
    return Capability(
        service=SERVICE,
        register=servicer.register,
        start=life.start,
        canary=life.canary,
        progress=life.progress,
        stop=life.stop,
    )


def main() -> int:
    """Serve until told to end; returns the exit code."""
    return run("embedding", EmbeddingSettings, lambda settings: [make_capability(settings)])


if __name__ == "__main__":
    raise SystemExit(main())
