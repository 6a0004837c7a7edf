"""``python -m embedding_service``: serve until SIGTERM."""

from __future__ import annotations

import sys

from embedding_service.servicer import SERVICE, EmbeddingServicer
from embedding_service.settings import EmbeddingSettings
from embedding_service.worker import embedding_life
from mesh.serving import Capability, run
from mesh.settings import EXIT_SETTINGS, SettingsError
from mesh.telemetry import configure_logging


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
    """Read the settings and serve. Returns the exit code."""
    try:
        settings = EmbeddingSettings.load()
    except SettingsError as error:
        print(f"embedding worker: {error}", file=sys.stderr)
        return EXIT_SETTINGS
    configure_logging("embedding", settings.log_format)
    return run(settings, [make_capability(settings)])


if __name__ == "__main__":
    raise SystemExit(main())
