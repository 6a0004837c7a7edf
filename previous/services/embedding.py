"""Embedding in the caller's own process."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from inference.card import ModelKind
from inference.engines import FloatArray
from inference.models import DEFAULT_EMBEDDING_MODEL, ModelRequest, resolve
from previous.torch_models import AUTO, text_encoder

BATCH_SIZE = 32
"""What ``SentenceTransformer.encode`` takes by itself."""


class EmbeddingService:
    """Texts to vectors, by one model that this process holds.

    >>> EmbeddingService().generate_embeddings(["a text", "another"]).shape  # doctest: +SKIP
    (2, 384)

    Threads wait for each other: a tokenizer belongs to one at a time.

    Args:
        model_name: a directory, or a hub name.
        device: ``auto``, ``cpu`` or ``cuda:0``.

    Raises:
        ModelUnusable: the model is missing, damaged or of the wrong kind.
    """

    def __init__(self, model_name: str = DEFAULT_EMBEDDING_MODEL, *, device: str = AUTO) -> None:
        self.model = resolve(ModelRequest(name=model_name, kind=ModelKind.EMBEDDING, setting="model_name"))
        self._encoder = text_encoder(self.model, device)
        # Many models end with a module that scales; once is enough.
        scales_itself = any(type(module).__name__ == "Normalize" for module in self._encoder)
        self._scale = self.model.card.normalize and not scales_itself
        self._one_at_a_time = threading.Lock()

    def generate_embeddings(self, texts: Sequence[str]) -> FloatArray:
        """The vectors of ``texts``: float32, (n, dim), each of length 1 unless the model's profile says otherwise."""
        card = self.model.card
        if not texts:
            import numpy as np

            return np.empty((0, card.dimensions), dtype=np.float32)
        with self._one_at_a_time:
            vectors: FloatArray = self._encoder.encode(
                list(texts),
                batch_size=BATCH_SIZE,
                prompt=card.prompts.get(card.default_prompt, ""),
                normalize_embeddings=self._scale,
                show_progress_bar=False,
            )
        return vectors
