"""A worker's memory stays flat however many texts of however many lengths it embeds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.bars import FULL, Bars, Measured

pytest.importorskip("torch", reason="needs the workers' environment")

from bench import memory
from bench.workers import embedding_worker
from mesh.clients import AsyncEmbeddingServiceClient
from ops.local.layout import Layout

pytestmark = [pytest.mark.workers_env, pytest.mark.integration, pytest.mark.slow]

TEXTS = memory.TEXTS if FULL else 6_000


async def test_memory_does_not_grow_with_the_texts(
    tmp_path_factory: pytest.TempPathFactory, measured: Measured
) -> None:
    """After the warm-up the slope is about nothing: what is kept for one shape of batch is not kept for each."""
    layout = replace(Layout.from_environment({}), models=tmp_path_factory.mktemp("models"))
    bars = Bars("memory of an embedding worker", measured)
    # The light engine: the one that keeps a plan for each shape, unless it is told not to.
    async with (
        embedding_worker(layout, {"ENGINE": "onnxruntime"}) as worker,
        AsyncEmbeddingServiceClient(worker.target) as client,
    ):
        growth = await memory.watch(client, worker.process, TEXTS, tell=print)
    print(growth.picture())
    # Few texts say little: an allocator's single step of 10 MB is a slope already.
    slope = growth.megabytes_per_10_000_texts
    bars.at_most("growth per 10,000 texts after the warm-up", slope, "MB", promise=1.0, noisy=60.0)
    bars.hold()
