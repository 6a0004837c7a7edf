"""Every engine that ``inference`` knows, each in a worker of its own, over embedding in process.

The mesh chooses one of them by itself; this shows what the others would give on this machine.
"""

from __future__ import annotations

from bench.embedding import (
    CONCURRENCY,
    REQUESTS,
    TEXTS_PER_REQUEST,
    checked_requests,
    speed_row,
)
from bench.inprocess import InProcess
from bench.measure import Tell, interleave
from bench.options import Options
from bench.report import Row, number
from bench.texts import Length, random_texts
from bench.ways import encode_side, in_requests, least_cosine, over_grpc
from bench.workers import embedding_worker
from ops.local.layout import Layout


def names() -> tuple[str, ...]:
    """Every engine that can be asked for; whether it runs here shows when it is."""
    from inference.engines.choice import ENGINES

    return tuple(ENGINES)


async def measure(engine: str, options: Options, layout: Layout, *, baseline: InProcess, tell: Tell) -> list[Row]:
    """The rows of one engine: its speed through gRPC, and how faithful it is.

    Raises:
        DidNotStart: it cannot run this model on this machine.
        MeshError: a call failed.
    """
    from mesh.clients import AsyncEmbeddingServiceClient

    tell(f"engine {engine}: starting a worker with it")
    rows = []
    async with (
        embedding_worker(layout, {"ENGINE": engine, "MODEL": options.model}) as worker,
        AsyncEmbeddingServiceClient(worker.target) as client,
    ):
        model = (await client.info()).models[0]
        for length in (Length.SHORT, Length.LONG):
            texts = random_texts(REQUESTS * TEXTS_PER_REQUEST, length)
            requests = in_requests(texts, TEXTS_PER_REQUEST)
            way = over_grpc(client, requests)
            reference = [await baseline.vectors(each) for each in requests[: checked_requests(quick=options.quick)]]
            cosine = await least_cosine(way, reference)
            sides = {
                engine: way.side(concurrency=CONCURRENCY, seconds=options.seconds),
                "in process": await encode_side(baseline, texts, options.seconds),
            }
            series = await interleave(sides, rounds=options.rounds, unit="texts/s", tell=tell)
            rows.append(
                speed_row(
                    "engines", f"{engine}, {length.name.lower()} texts, least cosine {number(cosine)}",
                    series[engine], series["in process"],
                    details={"least_cosine": cosine, "precision": model.precision, "device": model.device},
                )
            )  # fmt: skip
    return rows
