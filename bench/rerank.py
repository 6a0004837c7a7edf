"""Reranking through the mesh over MaxSim in process with the same model: 32 documents a request, 8 in flight."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence

from bench.inprocess import InProcess
from bench.load import closed_loop, connected, post
from bench.measure import Round, Side, interleave, paired_spread
from bench.report import Goal, Row
from bench.subject import CannotMeasure, Comparison
from bench.texts import Ranking, random_rankings

DOCUMENTS_PER_REQUEST = 32
CONCURRENCY = 8
NEAR_TIE = 1e-3
"""Documents whose reference scores are closer than this may change places."""

_REQUESTS = 32
_CHECKED_REQUESTS, _QUICK_CHECKED_REQUESTS = 8, 2
_BASELINE = "in process"
_METHOD = "late-interaction"


async def measure(comparison: Comparison) -> list[Row]:
    """The rows of reranking.

    Raises:
        CannotMeasure: the reranking hop does not serve, or serves a cross-encoder, which MaxSim is no baseline of.
        RequestFailed: a request failed.
        MeshError: a gRPC call failed.
    """
    from mesh.clients import AsyncRerankingServiceClient

    options, subject, baseline = comparison.options, comparison.subject, comparison.baseline
    subject.serving("reranking")
    comparison.tell(f"reranking, {DOCUMENTS_PER_REQUEST} documents a request")
    rankings = random_rankings(_REQUESTS, DOCUMENTS_PER_REQUEST)
    written = [
        post(subject.url, "/v2/rerank", {"model": "", "query": ranking.query, "documents": ranking.documents})
        for ranking in rankings
    ]
    async with (
        AsyncRerankingServiceClient(subject.target("reranking", options.reranking_target)) as client,
        connected(subject.url, CONCURRENCY) as lanes,
    ):
        model = (await client.info()).models[0]
        if model.method != _METHOD:
            raise CannotMeasure(f"the mesh serves {model.name} ({model.method}), and the baseline is {_METHOD}")

        async def over_http(lane: int, number: int) -> float:
            await lanes[lane].ask(written[number % len(written)])
            return DOCUMENTS_PER_REQUEST

        async def over_grpc(_: int, number: int) -> float:
            ranking = rankings[number % len(rankings)]
            return float(len((await client.score(ranking.query, ranking.documents)).scores))

        async def http_scores(number: int) -> list[float]:
            results = json.loads(await lanes[0].ask(written[number]))["results"]
            return [result["relevance_score"] for result in sorted(results, key=lambda result: result["index"])]

        async def grpc_scores(number: int) -> list[float]:
            return await client.rerank(rankings[number].query, rankings[number].documents)

        checked = rankings[: _QUICK_CHECKED_REQUESTS if options.quick else _CHECKED_REQUESTS]
        reference = [await baseline.scores(ranking) for ranking in checked]
        agreement = {
            "HTTP": await _agreement(http_scores, reference),
            "gRPC": await _agreement(grpc_scores, reference),
        }
        sides: dict[str, Side] = {
            "HTTP": lambda: closed_loop(over_http, concurrency=CONCURRENCY, seconds=options.seconds),
            "gRPC": lambda: closed_loop(over_grpc, concurrency=CONCURRENCY, seconds=options.seconds),
            _BASELINE: await _in_process(baseline, rankings, options.seconds),
        }
        series = await interleave(sides, rounds=options.rounds, unit="documents/s", tell=comparison.tell)
    rows = [
        Row(
            part="rerank", what=f"{name}, {DOCUMENTS_PER_REQUEST} documents", unit="documents/s",
            mesh=series[name].rate, baseline=series[_BASELINE].rate, against="MaxSim in process",
            spread=paired_spread(series[name], series[_BASELINE]), goal=Goal(at_least=3.0),
            details={
                "p50_ms": series[name].latency(0.5) * 1000, "p99_ms": series[name].latency(0.99) * 1000,
                "generator_cores": series[name].generator_share,
            },
        )
        for name in ("HTTP", "gRPC")
    ]  # fmt: skip
    rows.append(
        Row(part="rerank", what="pairs in the reference's order", unit="", mesh=min(agreement.values()),
            details=dict(agreement))
    )  # fmt: skip
    return rows


async def _in_process(baseline: InProcess, rankings: Sequence[Ranking], seconds: float) -> Side:
    """The baseline's side: as many of the rankings as it does in about ``seconds``."""
    await baseline.ranking_seconds(rankings[:1])
    count = max(1, min(len(rankings), round(seconds / await baseline.ranking_seconds(rankings[:1]))))

    async def once() -> Round:
        took = await baseline.ranking_seconds(rankings[:count])
        return Round(count * DOCUMENTS_PER_REQUEST, took)

    return once


async def _agreement(scores: Callable[[int], Awaitable[list[float]]], reference: Sequence[Sequence[float]]) -> float:
    return min([ordered_alike(await scores(number), each) for number, each in enumerate(reference)])


def ordered_alike(scores: Sequence[float], reference: Sequence[float]) -> float:
    """The share of all pairs that stand in the reference's order, near-ties left out; 1 where there are only ties."""
    pairs = [
        (better, worse)
        for better in range(len(reference))
        for worse in range(len(reference))
        if reference[better] - reference[worse] > NEAR_TIE
    ]
    return sum(scores[better] > scores[worse] for better, worse in pairs) / len(pairs) if pairs else 1.0
