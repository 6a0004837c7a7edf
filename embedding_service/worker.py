"""From settings to a capability whose model is ready to be loaded."""

from __future__ import annotations

from collections.abc import Callable

from embedding_service.embedder import Embedder
from embedding_service.servicer import SERVICE, EmbeddingServicer
from embedding_service.settings import EmbeddingSettings
from inference.card import ModelKind
from inference.life import ModelLife
from inference.loading import LoadedModel, load
from inference.models import ModelRequest
from inference.profiles import Overrides
from inference.runner import RunnerLimits
from mesh.serving import Capability


def make_capability(
    settings: EmbeddingSettings, load_it: Callable[[EmbeddingSettings], Embedder] | None = None
) -> Capability:
    """The worker's one capability; nothing is loaded before it starts.

    Args:
        settings: what the worker was told.
        load_it: in place of ``load_embedder``, for tests with another engine.
    """
    life = ModelLife(lambda: (load_it or load_embedder)(settings), capability="embedding")
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
        failures=life.failures,
        progress=life.progress,
        occupied=life.occupied,
        stop=life.stop,
    )


def load_embedder(settings: EmbeddingSettings) -> Embedder:
    """Find and load the model. Blocks.

    Raises:
        ModelUnusable: the model is missing, damaged or of the wrong kind.
    """
    request = ModelRequest(
        name=settings.model,
        kind=ModelKind.EMBEDDING,
        revision=settings.model_revision,
        sha256=settings.model_sha256,
        setting=settings.variable("model"),
        served_as=settings.served_model_name,
        overrides=Overrides(file=settings.model_profile, prompts=settings.prompts),
    )
    return make_embedder(load(request, settings.engine_plan, max_tokens=settings.max_input_tokens), settings)


def make_embedder(loaded: LoadedModel, settings: EmbeddingSettings) -> Embedder:
    """An embedder over ``loaded``, within the limits that the settings name."""
    limits = RunnerLimits(
        items_per_request=settings.max_inputs_per_request,
        tokens_per_request=settings.max_tokens_per_request,
        queued_tokens=settings.max_queued_tokens,
        batch_tokens=settings.max_batch_tokens,
    )
    return Embedder(loaded, limits, aliases=settings.model_aliases, dimensions=settings.dimensions)
