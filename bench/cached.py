"""What kept vectors give: a gateway of the benchmark's own with its cache on, before the mesh's embedding worker."""

from __future__ import annotations

import json
from pathlib import Path

from bench.embedding import CONCURRENCY, FIDELITY, REQUESTS, TEXTS_PER_REQUEST, checked_requests, speed_row
from bench.gateway import gateway_program
from bench.load import Lane, connected, post
from bench.measure import interleave
from bench.processes import running
from bench.report import Goal, Row
from bench.subject import CannotMeasure, Comparison
from bench.texts import Length, random_texts
from bench.ways import Requests, in_requests, least_cosine, over_http

CACHE_ON = {"ENABLE_VECTOR_CACHE": "true", "VECTOR_CACHE_TYPE": "memory"}
_HIT = Goal(at_most=2.0, of_value=True)


async def measure(comparison: Comparison, gateway_python: Path) -> list[Row]:
    """The rows of the cache: requests whose every text has been embedded before.

    Raises:
        CannotMeasure: the embedding hop does not serve, or the gateway keeps no vectors.
        DidNotStart: the gateway did not start.
        RequestFailed: a request failed.
    """
    options, subject = comparison.options, comparison.subject
    worker = subject.target("embedding", options.embedding_target)
    requests = in_requests(random_texts(REQUESTS * TEXTS_PER_REQUEST, Length.SHORT), TEXTS_PER_REQUEST)
    comparison.tell("cached embedding: a gateway of its own with the cache on")
    program = gateway_program(gateway_python, worker, CACHE_ON)
    async with (
        running(program) as gateway,
        connected(gateway.url, CONCURRENCY) as lanes,
        connected(subject.url, CONCURRENCY) as others,
    ):
        await _fill(lanes[0], gateway.url, requests)
        cached = over_http(lanes, gateway.url, requests, "base64")
        computed = over_http(others, subject.url, requests, "base64")
        checked = requests[: checked_requests(quick=options.quick)]
        cosine = await least_cosine(cached, [await comparison.baseline.vectors(each) for each in checked])
        many = await interleave(
            {
                "cached": cached.side(concurrency=CONCURRENCY, seconds=options.seconds),
                "computed": computed.side(concurrency=CONCURRENCY, seconds=options.seconds),
            },
            rounds=options.rounds, unit="texts/s", tell=comparison.tell,
        )  # fmt: skip
        alone = await interleave(
            {"cached": cached.side(concurrency=1, seconds=options.seconds)},
            rounds=options.rounds, unit="texts/s", tell=comparison.tell,
        )  # fmt: skip
    return [
        speed_row(
            "cached", "HTTP base64, short texts", many["cached"], many["computed"], against="the same, computed"
        ),
        Row(
            part="cached", what=f"a hit for {TEXTS_PER_REQUEST} texts, concurrency 1, median", unit="ms",
            mesh=alone["cached"].latency(0.5) * 1000, goal=_HIT,
            details={"p99_ms": alone["cached"].latency(0.99) * 1000},
        ),
        Row(part="cached", what="least cosine to float32, short texts", unit="", mesh=cosine, goal=FIDELITY),
    ]  # fmt: skip


async def _fill(lane: Lane, url: str, requests: Requests) -> None:
    """Have every request embedded once, and see that the first is kept then."""
    written = [post(url, "/v1/embeddings", {"model": "", "input": list(texts)}) for texts in requests]
    for request in written:
        await lane.ask(request)
    usage = json.loads(await lane.ask(written[0]))["usage"]
    kept = usage.get("cache_hits")
    if kept is None:
        raise CannotMeasure("this gateway keeps no vectors: its answers say nothing of cache_hits")
    if kept != len(requests[0]):
        raise CannotMeasure(f"of {len(requests[0])} texts sent twice the gateway kept {kept}")
