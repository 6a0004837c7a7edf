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
from bench.measure import Round, Side, interleave, quantile
from bench.report import Goal, Row
from bench.subject import Comparison
from bench.texts import Length, random_texts
from bench.ways import Way, in_requests, one_by_one_side, over_grpc, over_http

TEXTS = 2048
MANY = 32
_BASELINE = "in process"
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
        async with (
            EngineAlone(model, models_dir, name, threads=0) as engine,
            EngineAlone(model, models_dir, name, threads=1) as one_thread,
        ):
            rows = await _latency(comparison, ways, {name: engine, f"{name} with one thread": one_thread})
        comparison.tell(f"one text a request, concurrency {MANY}")
        return [*rows, *await _throughput(comparison, ways)]


async def _latency(comparison: Comparison, ways: Mapping[str, Way], engines: Mapping[str, EngineAlone]) -> list[Row]:
    options = comparison.options
    alone = {each: _Directly(engine) for each, engine in engines.items()}
    sides: dict[str, Side] = {way: each.side(concurrency=1, seconds=options.seconds) for way, each in ways.items()}
    sides.update({each: engine.round for each, engine in alone.items()})
    for warm in sides.values():
        await warm()
    series = await interleave(sides, rounds=options.rounds, unit="texts/s", tell=comparison.tell)
    # Threads that have to wait for each other on a busy core can make it slower than one; a baseline must not lose so.
    best = min(alone, key=lambda each: series[each].latency(0.5))
    return [
        Row(
            part="single", what=f"{way}, concurrency 1, median", unit="ms",
            mesh=series[way].latency(0.5) * 1000, baseline=series[best].latency(0.5) * 1000,
            against=f"{best}, called directly", smaller_is_better=True, goal=_LATENCY,
            details={
                "p99_ms": series[way].latency(0.99) * 1000,
                "baseline_p99_ms": series[best].latency(0.99) * 1000,
                "baseline_without_tokenizer_ms": quantile(alone[best].computing, 0.5) * 1000,
                "generator_cores": series[way].generator_share,
            },
        )
        for way in ways
    ]  # fmt: skip


class _Directly:
    """A side that calls an engine with one text after the other.

    Attributes:
        computing: seconds of each text without the tokenizer's.
    """

    def __init__(self, engine: EngineAlone) -> None:
        self._engine = engine
        self._texts = random_texts(_ENGINE_TEXTS, Length.SHORT)
        self.computing: list[float] = []

    async def round(self) -> Round:
        """Every text once."""
        found = await self._engine.seconds(self._texts)
        self.computing.extend(run for _, run in found)
        whole = tuple(seconds for seconds, _ in found)
        return Round(len(whole), sum(whole), whole)


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
