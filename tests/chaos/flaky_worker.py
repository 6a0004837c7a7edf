"""An embedding worker that says SERVING and fails calls all the same: a process for tests of what a hop makes of that.

Its server and life cycle are the real ones; ``EMBEDDING_…`` variables configure it. Before each call it reads the file
that ``MESH_FAULT_FILE`` names: ``unavailable 0.5`` fails half of the calls as one that is down does, ``internal 1`` all
of them as a bug does. A missing or empty file fails none.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from embedding_service.settings import EmbeddingSettings
from mesh.errors import Internal, MeshError, Unavailable
from mesh.serving import run
from mesh.testing import ScriptedEmbedding

_ERRORS: dict[str, type[MeshError]] = {"unavailable": Unavailable, "internal": Internal}


def steps(fault_file: Path) -> Iterator[MeshError | None]:
    """What becomes of each call."""
    dice = random.Random(os.getpid())
    while True:
        kind, share = (_read(fault_file) or "internal 0").split()
        yield _ERRORS[kind]("This call fails by lot.") if dice.random() < float(share) else None


def _read(fault_file: Path) -> str:
    try:
        return fault_file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def main() -> int:
    """Serve until told to end; returns the exit code."""
    servicer = ScriptedEmbedding(steps(Path(os.environ["MESH_FAULT_FILE"])))
    return run("embedding", EmbeddingSettings, lambda _: [servicer.capability()])


if __name__ == "__main__":
    sys.exit(main())
