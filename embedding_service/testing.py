"""``python -m embedding_service.testing``: the embedding worker with an engine that can be hurt while it runs.

Everything but the engine and its tiny model is the real thing: ``mesh.serving.run``, the servicer, the batcher, the
watchdog, the metrics. It needs numpy and tokenizers, and no torch.

It takes the ``EMBEDDING_…`` settings (``EMBEDDING_MODEL`` and what else concerns a real model is ignored) and

``MESH_FAULT_FILE``
    the path of a file that is read before each batch: ``healthy``, ``slow:0.001`` (seconds per token), ``fail``,
    ``fail:WORD``, ``out-of-memory`` or ``hang``. See `inference.testing.FaultyEngine`. A missing file is healthy.

A text's tokens are its words and two more, up to 512, and its vector has 8 numbers. What is known: the words of
`inference.testing.WORDS` (``fail:red`` makes every batch with the word "red" fail); any other word is the same unknown
token. ``EMBEDDING_MAX_BATCH_TOKENS`` bounds a batch (1024 unless set), so with ``slow:0.001`` the worker computes 1000
tokens a second in batches of about one second.

What the engine did is told on ``EMBEDDING_METRICS_PORT``: ``mesh_batch_size_count`` computed batches,
``mesh_batch_size_sum`` computed inputs, ``mesh_batch_failures_total`` failed ones.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from embedding_service.embedder import Embedder
from embedding_service.settings import EmbeddingSettings
from embedding_service.worker import make_capability, make_embedder
from inference.testing import faulty_loaded_model
from mesh.serving import run

FAULT_FILE = "MESH_FAULT_FILE"


def main() -> int:
    """Serve until told to end; returns the exit code."""
    return run("embedding", EmbeddingSettings, lambda settings: [make_capability(settings, load_faulty)])


def load_faulty(settings: EmbeddingSettings) -> Embedder:
    """An embedder over a FaultyEngine that reads the file named by MESH_FAULT_FILE."""
    fault_file = Path(os.environ.get(FAULT_FILE) or os.devnull)
    with tempfile.TemporaryDirectory(prefix="faulty-model-") as directory:
        return make_embedder(faulty_loaded_model(Path(directory) / "model", fault_file), settings)


if __name__ == "__main__":
    sys.exit(main())
