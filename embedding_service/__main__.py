"""``python -m embedding_service``: serve until SIGTERM."""

from __future__ import annotations

import sys

from embedding_service.servicer import SERVICE, EmbeddingServicer
from embedding_service.settings import EmbeddingSettings
from embedding_service.worker import EmbeddingWorker
from mesh.pb.embedding.v1.embedding_pb2_grpc import add_EmbeddingServiceServicer_to_server
from mesh.serving import Capability, run
from mesh.settings import SettingsError
from mesh.telemetry import configure_logging

EXIT_SETTINGS = 64
"""EX_USAGE: a supervisor need not try again."""


def main() -> int:
    """Read the settings and serve. Returns the exit code."""
    try:
        settings = EmbeddingSettings.load()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_SETTINGS
    configure_logging("embedding", settings.log_format)
    worker = EmbeddingWorker(settings)
    servicer = EmbeddingServicer(worker, settings)
    capability = Capability(
        service=SERVICE,
        register=lambda server: add_EmbeddingServiceServicer_to_server(servicer, server),
        start=worker.start,
        canary=worker.canary,
        progress=worker.progress,
        stop=worker.stop,
    )
    return run(settings, [capability])


if __name__ == "__main__":
    raise SystemExit(main())
