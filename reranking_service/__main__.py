"""``python -m reranking_service``: serve until SIGTERM."""

from __future__ import annotations

import sys

from mesh.serving import Capability, run
from mesh.settings import EXIT_SETTINGS, SettingsError
from mesh.telemetry import configure_logging
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
        progress=life.progress,
        stop=life.stop,
    )


def main() -> int:
    """Read the settings and serve. Returns the exit code."""
    try:
        settings = RerankingSettings.load()
    except SettingsError as error:
        print(f"reranking worker: {error}", file=sys.stderr)
        return EXIT_SETTINGS
    configure_logging("reranking", settings.log_format)
    return run(settings, [make_capability(settings)])


if __name__ == "__main__":
    raise SystemExit(main())
