"""``python -m reranking_service``: serve until SIGTERM."""

from __future__ import annotations

from mesh.serving import Capability, run
from reranking_service.servicer import SERVICE, RerankingServicer
from reranking_service.settings import RerankingSettings
from reranking_service.worker import reranking_life


def make_capability(settings: RerankingSettings) -> Capability:
    """The worker's one capability."""
    life = reranking_life(settings)
    servicer = RerankingServicer(life, max_request_bytes=settings.max_message_bytes)
    return Capability(
        service=SERVICE,
        register=servicer.register,
        start=life.start,
        canary=life.canary,
        failures=life.failures,
        progress=life.progress,
        occupied=life.occupied,
        stop=life.stop,
    )


def main() -> int:
    """Serve until told to end; returns the exit code."""
    return run("reranking", RerankingSettings, lambda settings: [make_capability(settings)])


if __name__ == "__main__":
    raise SystemExit(main())
