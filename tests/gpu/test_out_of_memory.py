"""Running out of a real device's memory: the batch is split, everyone is answered, and the next ones fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from bench.texts import Length, random_texts
from embedding_service.embedder import Embedder, EmbeddingRequest
from inference.card import ModelKind
from inference.engines.choice import EnginePlan
from inference.loading import LoadedModel, load
from inference.models import ModelRequest
from inference.runner import RunnerLimits
from mesh.deadline import Deadline
from mesh.errors import GpuOutOfMemory
from ops.local.layout import Layout
from tests.chaos.bars import Measured

pytestmark = [
    pytest.mark.workers_env,
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

MEBIBYTE = 1 << 20
# The states between the two products of a feed-forward layer alone take 4 * 384 numbers a token.
FAR_TOO_MANY_TOKENS = 4_000_000
TEXTS = 8192


@pytest.fixture
def loaded(default_model: Path, layout: Layout, device: str) -> Iterator[LoadedModel]:
    """The default model in half precision."""
    request = ModelRequest(name=str(default_model), kind=ModelKind.EMBEDDING)
    model = load(request, EnginePlan(models_dir=layout.models, engine="torch-fp16", device=device))
    yield model
    model.engine.close()


@pytest.fixture
def room() -> Iterator[None]:
    """A quarter of a gibibyte for this process, whatever the device has; all of it afterwards."""
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 256 * MEBIBYTE / total))
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


async def test_a_batch_that_does_not_fit_is_split_and_all_are_answered(
    loaded: LoadedModel, room: None, measured: Measured
) -> None:
    """Thousands of long texts in one batch exceed the memory; each still gets the vector that it gets alone."""
    texts = random_texts(TEXTS, Length.LONG)
    embedder = _embedder(loaded)
    embedder.start()
    try:
        found = await embedder.embed(EmbeddingRequest(texts=texts), deadline=Deadline.after(300))
        splits = _splits()
        again = await embedder.embed(EmbeddingRequest(texts=texts), deadline=Deadline.after(300))
        alone = [
            (await embedder.embed(EmbeddingRequest(texts=[texts[number]]), deadline=Deadline.after(60))).vectors[0]
            for number in range(0, TEXTS, TEXTS // 64)
        ]
    finally:
        await embedder.stop()
    measured("splits of the first request", splits, "")
    measured("largest batch after them", again.batch_size, "texts")
    assert splits > 0
    assert _splits() == splits, "the second request was cut to what fits from the start"
    least = float((found.vectors[:: TEXTS // 64] * np.stack(alone)).sum(axis=1).min())
    assert least >= 0.9999


async def test_one_input_that_does_not_fit_is_told_so(loaded: LoadedModel) -> None:
    """Where not even one text fits, its caller gets GpuOutOfMemory, and the worker goes on afterwards."""
    import torch

    embedder = _embedder(loaded)
    embedder.start()
    try:
        await embedder.embed(EmbeddingRequest(texts=["warm"]), deadline=Deadline.after(60))
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1e-9)
        long = random_texts(1, Length.LONG)
        with pytest.raises(GpuOutOfMemory):
            await embedder.embed(EmbeddingRequest(texts=long), deadline=Deadline.after(60))
        torch.cuda.set_per_process_memory_fraction(1.0)
        assert (await embedder.embed(EmbeddingRequest(texts=long), deadline=Deadline.after(60))).vectors.shape[0] == 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        await embedder.stop()


def _embedder(loaded: LoadedModel) -> Embedder:
    """One that would compute everything at once."""
    limits = RunnerLimits(
        items_per_request=TEXTS,
        tokens_per_request=FAR_TOO_MANY_TOKENS,
        queued_tokens=FAR_TOO_MANY_TOKENS,
        batch_tokens=FAR_TOO_MANY_TOKENS,
    )
    return Embedder(loaded, limits)


def _splits() -> float:
    labels = {"capability": "embedding", "reason": "oom"}
    return REGISTRY.get_sample_value("mesh_batch_splits_total", labels) or 0.0
