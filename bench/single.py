"""One text a request, as interactive users send them: what the mesh adds to the engine, and what batching gives.

At concurrency 1 the baseline is the worker's own engine called directly, from text to vector: what is above it is the
mesh's. At concurrency 32 it is the model in process with one ``encode`` call a text, which is what an API process does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.embedding import speed_row
from bench.inprocess import EngineAlone
from bench.load import connected
from bench.measure import Round, Series, Side, interleave
from bench.report import Goal, Row
from bench.subject import Comparison
from bench.texts import Length, random_texts
from bench.ways import Way, in_requests, one_by_one_side, over_grpc, over_http

TEXTS = 2048
MANY = 32
_ENGINE, _BASELINE = "engine", "in process"
_ENGINE_TEXTS = 64
_LATENCY = Goal(at_most=1.3)
_SPEED = Goal(at_least=3.0)


async def measure(comparison: Comparison, model: Path, models_dir: Path) -> list[Row]:
    """The rows of single texts.

    Args:
        comparison: the mesh and the model in process.
        model: the directory of the embedding model.
        models_dir: where graphs and engine choices are kept.

    Raises:
        CannotMeasure: the embedding hop does not serve.
        BaselineFailed: its engine cannot be called directly here.
        RequestFailed: a request failed.
        MeshError: a gRPC call failed.
    """
    from mesh.clients import AsyncEmbeddingServiceClient

    subject = comparison.subject
    subject.serving("embedding")
    requests = in_requests(random_texts(TEXTS, Length.SHORT), 1)
    target = subject.target("embedding", comparison.options.embedding_target)
    async with AsyncEmbeddingServiceClient(target) as client, connected(subject.url, MANY) as lanes:
        ways = {"HTTP": over_http(lanes, subject.url, requests, "base64"), "gRPC": over_grpc(client, requests)}
        name = (await client.info()).models[0].engine
        comparison.tell(f"one text a request, concurrency 1, beside {name} called directly")
        async with EngineAlone(model, models_dir, name) as engine:
            rows = await _latency(comparison, ways, engine, name)
        comparison.tell(f"one text a request, concurrency {MANY}")
        return [*rows, *await _throughput(comparison, ways)]


async def _latency(comparison: Comparison, ways: Mapping[str, Way], engine: EngineAlone, name: str) -> list[Row]:
    options = comparison.options
    texts = random_texts(_ENGINE_TEXTS, Length.SHORT)
    computing: list[float] = []

    async def directly() -> Round:
        found = await engine.seconds(texts)
        computing.extend(run for _, run in found)
        whole = tuple(seconds for seconds, _ in found)
        return Round(len(whole), sum(whole), whole)

    sides: dict[str, Side] = {way: each.side(concurrency=1, seconds=options.seconds) for way, each in ways.items()}
    sides[_ENGINE] = directly
    for warm in sides.values():
        await warm()
    computing.clear()
    series = await interleave(sides, rounds=options.rounds, unit="texts/s", tell=comparison.tell)
    engine_alone_ms = Series((Round(1, 1.0, tuple(computing)),)).latency(0.5) * 1000
    return [
        Row(
            part="single", what=f"{way}, concurrency 1, median", unit="ms",
            mesh=series[way].latency(0.5) * 1000, baseline=series[_ENGINE].latency(0.5) * 1000,
            against=f"{name} directly", smaller_is_better=True, goal=_LATENCY,
            details={
                "p99_ms": series[way].latency(0.99) * 1000,
                "baseline_p99_ms": series[_ENGINE].latency(0.99) * 1000,
                "baseline_without_tokenizer_ms": engine_alone_ms,
                "generator_cores": series[way].generator_share,
            },
        )
        for way in ways
    ]  # fmt: skip


async def _throughput(comparison: Comparison, ways: Mapping[str, Way]) -> list[Row]:
    options = comparison.options
    sides: dict[str, Side] = {way: each.side(concurrency=MANY, seconds=options.seconds) for way, each in ways.items()}
    sides[_BASELINE] = await one_by_one_side(comparison.baseline, random_texts(TEXTS, Length.SHORT), options.seconds)
    series = await interleave(sides, rounds=options.rounds, unit="texts/s", tell=comparison.tell)
    return [
        speed_row(
            "single", f"{way}, concurrency {MANY}", series[way], series[_BASELINE],
            against="one encode a text", goal=_SPEED,
        )
        for way in ways
    ]  # fmt: skip
