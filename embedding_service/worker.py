"""The capability's life: load the model off the event loop, warm it up, answer the canary, stop."""

from __future__ import annotations

import asyncio
import os

from embedding_service.embedder import Embedder, EmbedderLimits, EmbeddingRequest
from embedding_service.settings import EmbeddingSettings
from inference.card import ModelKind
from inference.engines.choice import EnginePlan
from inference.loading import LoadedModel, default_models_dir, load
from inference.models import ModelRequest
from mesh.deadline import Deadline
from mesh.errors import Unavailable
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

_WARM_UP_SECONDS = 120.0
_CANARY_SECONDS = 10.0
_CANARY = EmbeddingRequest(texts=("canary",))


class EmbeddingWorker:
    """Holds the embedder once it is there. Made before the event loop runs."""

    def __init__(self, settings: EmbeddingSettings) -> None:
        self._settings = settings
        self._embedder: Embedder | None = None

    @property
    def embedder(self) -> Embedder:
        """The embedder.

        Raises:
            Unavailable: the model is still loading.
        """
        if self._embedder is None:
            raise Unavailable("The embedding model is still loading.", reason="WARMING_UP", retry_after=1.0)
        return self._embedder

    async def start(self) -> None:
        """Load the model and run one real inference.

        Raises:
            ModelUnusable: the model is missing, damaged or of the wrong kind.
        """
        loaded = await asyncio.to_thread(self._load)
        settings = self._settings
        limits = EmbedderLimits(
            inputs_per_request=settings.max_inputs_per_request,
            tokens_per_request=settings.max_tokens_per_request,
            queued_tokens=settings.max_queued_tokens,
            batch_tokens=settings.max_batch_tokens,
            dimensions=tuple(settings.dimensions),
        )
        embedder = Embedder(loaded, limits, aliases=settings.model_aliases)
        embedder.start()
        await embedder.embed(_CANARY, deadline=Deadline.after(_WARM_UP_SECONDS))
        self._embedder = embedder
        log.info(
            "embedding serves",
            extra=fields(
                model=loaded.model.name,
                source=loaded.model.source.value,
                engine=loaded.verdict.engine,
                device=loaded.verdict.device,
                min_cosine=round(loaded.verdict.min_cosine, 6),
            ),
        )

    async def canary(self) -> None:
        """One real inference."""
        await self.embedder.embed(_CANARY, deadline=Deadline.after(_CANARY_SECONDS))

    def progress(self) -> float:
        """Seconds for which admitted work has waited without progress; 0.0 when idle."""
        return self._embedder.progress() if self._embedder is not None else 0.0

    async def stop(self) -> None:
        """Finish what was admitted and end the engine's thread."""
        if self._embedder is not None:
            await self._embedder.stop()

    def _load(self) -> LoadedModel:
        settings = self._settings
        request = ModelRequest(
            name=settings.model,
            kind=ModelKind.EMBEDDING,
            revision=settings.model_revision,
            sha256=settings.model_sha256,
            setting=settings.variable("model"),
            served_as=settings.served_model_name,
        )
        plan = EnginePlan(
            models_dir=settings.models_dir or default_models_dir(os.environ),
            engine=settings.engine,
            device=settings.device,
            threads=settings.threads,
            min_cosine=settings.min_cosine,
        )
        return load(request, plan, max_tokens=settings.max_input_tokens)
