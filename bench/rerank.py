"""Reranking through the mesh over scoring in process with the same model: 32 documents a request, 8 in flight.

Here it is late interaction over MaxSim, as the mesh at hand serves it; `crossencoder` compares cross-encoders in the
same way.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bench.load import closed_loop, connected, post
from bench.measure import Round, Side, Tell, interleave, paired_spread
from bench.options import Options
from bench.report import Goal, Row
from bench.subject import CannotMeasure, Comparison
from bench.texts import Ranking, random_rankings
from ops.local.status import api_key

if TYPE_CHECKING:
    from bench.load import Lane, Send
    from mesh.clients import AsyncRerankingServiceClient

DOCUMENTS_PER_REQUEST = 32
CONCURRENCY = 8
NEAR_TIE = 1e-3
"""Documents whose reference scores are closer than this may change places."""
LATE_INTERACTION = "late-interaction"

_REQUESTS = 32
_CHECKED_REQUESTS, _QUICK_CHECKED_REQUESTS = 8, 2
_BASELINE = "in process"
_SPEED = Goal(at_least=3.0)
_ORDER = Goal(at_least=1.0, of_value=True)


class Scorer(Protocol):
    """A model in process that scores rankings."""

    async def ranking_seconds(self, rankings: Sequence[Ranking]) -> float:
        """How long it takes for these, one after the other."""
        ...

    async def scores(self, ranking: Ranking) -> list[float]:
        """Scores in the documents' order."""
        ...


@dataclass(frozen=True, slots=True)
class Way:
    """How to have ranking ``number`` scored: to be driven, and to be asked for the scores in the documents' order."""

    send: Send
    scores: Callable[[int], Awaitable[list[float]]]


async def measure(comparison: Comparison) -> list[Row]:
    """The rows of reranking by late interaction, as the mesh serves it.

    Raises:
        CannotMeasure: the reranking hop does not serve, or serves a cross-encoder, which MaxSim is no baseline of.
        RequestFailed: a request failed.
        MeshError: a gRPC call failed.
    """
    from mesh.clients import AsyncRerankingServiceClient

    options, subject = comparison.options, comparison.subject
    subject.serving("reranking")
    comparison.tell(f"reranking, {DOCUMENTS_PER_REQUEST} documents a request")
    rankings = random_rankings(_REQUESTS, DOCUMENTS_PER_REQUEST)
    async with (
        AsyncRerankingServiceClient(subject.target("reranking", options.reranking_target)) as client,
        connected(subject.url, CONCURRENCY) as lanes,
    ):
        model = (await client.info()).models[0]
        if model.method != LATE_INTERACTION:
            raise CannotMeasure(
                f"the mesh serves {model.name} ({model.method}), which MaxSim is no baseline of; "
                "the part cross-encoder measures it"
            )
        ways = {"HTTP": over_http(lanes, subject.url, rankings), "gRPC": over_grpc(client, rankings)}
        return await compare(
            "rerank", ways, comparison.baseline, rankings, against="MaxSim in process", options=options,
            tell=comparison.tell,
        )  # fmt: skip


def over_http(lanes: Sequence[Lane], url: str, rankings: Sequence[Ranking]) -> Way:
    """Through ``/v2/rerank`` of a gateway."""
    written = [
        post(url, "/v2/rerank", {"model": "", "query": ranking.query, "documents": ranking.documents}, key=api_key())
        for ranking in rankings
    ]

    async def send(lane: int, number: int) -> float:
        await lanes[lane].ask(written[number % len(written)])
        return float(len(rankings[number % len(rankings)].documents))

    async def scores(number: int) -> list[float]:
        results = json.loads(await lanes[0].ask(written[number]))["results"]
        return [result["relevance_score"] for result in sorted(results, key=lambda result: result["index"])]

    return Way(send, scores)


def over_grpc(client: AsyncRerankingServiceClient, rankings: Sequence[Ranking]) -> Way:
    """Through a worker's gRPC."""

    async def send(_: int, number: int) -> float:
        ranking = rankings[number % len(rankings)]
        return float(len((await client.score(ranking.query, ranking.documents)).scores))

    return Way(send, lambda number: client.rerank(rankings[number].query, rankings[number].documents))


async def compare(  # noqa: PLR0913 - two sides, what they are given, and what is said of them
    part: str, ways: Mapping[str, Way], baseline: Scorer, rankings: Sequence[Ranking], *,
    against: str, options: Options, tell: Tell,
) -> list[Row]:  # fmt: skip
    """Speed and order of every way beside the baseline's."""
    checked = rankings[: _QUICK_CHECKED_REQUESTS if options.quick else _CHECKED_REQUESTS]
    reference = [await baseline.scores(ranking) for ranking in checked]
    agreement = {name: await _agreement(way.scores, reference) for name, way in ways.items()}
    sides = {name: _side(way, options.seconds) for name, way in ways.items()}
    sides[_BASELINE] = await _in_process(baseline, rankings, options.seconds)
    series = await interleave(sides, rounds=options.rounds, unit="documents/s", tell=tell)
    rows = [
        Row(
            part=part, what=f"{name}, {DOCUMENTS_PER_REQUEST} documents", unit="documents/s",
            mesh=series[name].rate, baseline=series[_BASELINE].rate, against=against,
            spread=paired_spread(series[name], series[_BASELINE]), goal=_SPEED,
            details={
                "p50_ms": series[name].latency(0.5) * 1000, "p99_ms": series[name].latency(0.99) * 1000,
                "generator_cores": series[name].generator_share,
            },
        )
        for name in ways
    ]  # fmt: skip
    rows.append(
        Row(part=part, what="pairs in the reference's order, ties within 0.001 left out", unit="",
            mesh=min(agreement.values()), goal=_ORDER, details=dict(agreement))
    )  # fmt: skip
    return rows


def _side(way: Way, seconds: float) -> Side:
    return lambda: closed_loop(way.send, concurrency=CONCURRENCY, seconds=seconds)


async def _in_process(baseline: Scorer, rankings: Sequence[Ranking], seconds: float) -> Side:
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
