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

TEXTS = memory.TEXTS if FULL else 2_000


async def test_memory_does_not_grow_with_the_texts(
    tmp_path_factory: pytest.TempPathFactory, measured: Measured
) -> None:
    """After the warm-up the slope is about nothing: what is kept for one shape of batch is not kept for each."""
    layout = replace(Layout.from_environment({}), models=tmp_path_factory.mktemp("models"))
    bars = Bars("memory of an embedding worker", measured)
    # The engine that keeps a plan for each shape, unless it is told not to.
    settings = {"ENGINE": "onnxruntime"}
    async with embedding_worker(layout, settings):
        pass  # exports and measures, which takes a gibibyte that the next one does without
    async with (
        embedding_worker(layout, settings) as worker,
        AsyncEmbeddingServiceClient(worker.target) as client,
    ):
        growth = await memory.watch(client, worker.process, TEXTS, tell=print)
    print(growth.picture())
    # In so few texts an allocator's single step of 10 MB is a slope of 50; a plan kept for each shape is one of 1,000.
    slope = growth.megabytes_per_10_000_texts
    bars.at_most("growth per 10,000 texts after the warm-up", slope, "MB", promise=1.0, noisy=100.0)
    bars.hold()
