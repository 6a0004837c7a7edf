"""all-MiniLM behind BentoML, as its documentation does it, with requests batched.

Runs in the peer's environment, so it imports nothing of the mesh. ``PEER_MODEL`` names the model's directory.

    PEER_MODEL=DIR bentoml serve bentoml_app:Embedding --working-dir bench/peers --port 8002
"""

from __future__ import annotations

import os

import bentoml
import numpy as np


@bentoml.service(traffic={"timeout": 60})
class Embedding:
    """Lists of texts in, lists of vectors out."""

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(os.environ["PEER_MODEL"], device="cpu")

    # A latency that it may plan with: where its own estimate is above it, it refuses requests.
    @bentoml.api(batchable=True, max_batch_size=512, max_latency_ms=60_000)
    def embed(self, texts: list[str]) -> np.ndarray:
        """One call of the model for the texts of all requests of a batch."""
        return self._model.encode(texts, batch_size=32, normalize_embeddings=True)
