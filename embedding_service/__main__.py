"""``python -m embedding_service``: serve until SIGTERM."""

from __future__ import annotations

from embedding_service.settings import EmbeddingSettings
from embedding_service.worker import make_capability
from mesh.serving import run


def main() -> int:
    """Serve until told to end; returns the exit code."""
    return run("embedding", EmbeddingSettings, lambda settings: [make_capability(settings)])


if __name__ == "__main__":
    raise SystemExit(main())
