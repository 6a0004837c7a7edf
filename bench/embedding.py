"""Embedding through the mesh over embedding in process: 32 texts a request, 8 requests in flight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.load import connected
from bench.measure import Series, interleave, paired_spread
from bench.report import Goal, Row
from bench.subject import Comparison
from bench.texts import Length, random_texts
from bench.ways import Way, encode_side, in_requests, least_cosine, over_grpc, over_http

TEXTS_PER_REQUEST = 32
CONCURRENCY = 8
REQUESTS = 64
FIDELITY = Goal(at_least=0.999, of_value=True)
AGAINST = "encode in process"

_CHECKED_REQUESTS, _QUICK_CHECKED_REQUESTS = 8, 2
_BASELINE = "in process"
_SPEED = Goal(at_least=3.0)


async def measure(comparison: Comparison) -> list[Row]:
    """The rows of embedding.

    Raises:
        CannotMeasure: the embedding hop does not serve.
        RequestFailed: a request failed.
        MeshError: a gRPC call failed.
    """
    from mesh.clients import AsyncEmbeddingServiceClient

    subject = comparison.subject
    subject.serving("embedding")
    rows: list[Row] = []
    target = subject.target("embedding", comparison.options.embedding_target)
    async with AsyncEmbeddingServiceClient(target) as client, connected(subject.url, CONCURRENCY) as lanes:
        for length in (Length.SHORT, Length.LONG):
            comparison.tell(f"embedding, {length.name.lower()} texts: {length.value[0]}-{length.value[1]} words")
            texts = random_texts(REQUESTS * TEXTS_PER_REQUEST, length)
            requests = in_requests(texts, TEXTS_PER_REQUEST)
            ways = {
                "HTTP base64": over_http(lanes, subject.url, requests, "base64"),
                "HTTP float": over_http(lanes, subject.url, requests, "float"),
                "gRPC": over_grpc(client, requests),
            }
            rows.extend(await _compare(comparison, length, texts, ways))
    return rows


def checked_requests(*, quick: bool) -> int:
    """How many requests' vectors are compared with the reference's."""
    return _QUICK_CHECKED_REQUESTS if quick else _CHECKED_REQUESTS


async def _compare(comparison: Comparison, length: Length, texts: Sequence[str], ways: Mapping[str, Way]) -> list[Row]:
    options, baseline = comparison.options, comparison.baseline
    checked = in_requests(texts, TEXTS_PER_REQUEST)[: checked_requests(quick=options.quick)]
    # Comparing the vectors first also warms every way.
    reference = [await baseline.vectors(request) for request in checked]
    cosines = {name: await least_cosine(way, reference) for name, way in ways.items()}
    sides = {name: way.side(concurrency=CONCURRENCY, seconds=options.seconds) for name, way in ways.items()}
    sides[_BASELINE] = await encode_side(baseline, texts, options.seconds)
    series = await interleave(sides, rounds=options.rounds, unit="texts/s", tell=comparison.tell)
    kind = f"{length.name.lower()} texts"
    rows = [speed_row("embedding", f"{name}, {kind}", series[name], series[_BASELINE], goal=_SPEED) for name in ways]
    rows.append(
        Row(
            part="embedding", what=f"least cosine to float32, {kind}", unit="", mesh=min(cosines.values()),
            goal=FIDELITY, details={"texts": float(len(checked) * TEXTS_PER_REQUEST), **cosines},
        )
    )  # fmt: skip
    return rows


def speed_row(  # noqa: PLR0913 - two series, and what the row says of them
    part: str, what: str, mesh: Series, baseline: Series, *, against: str = AGAINST, goal: Goal | None = None,
    details: Mapping[str, float | str] | None = None,
) -> Row:  # fmt: skip
    """Texts per second of one way beside another's."""
    return Row(
        part=part, what=what, unit="texts/s", mesh=mesh.rate, baseline=baseline.rate, against=against,
        spread=paired_spread(mesh, baseline), goal=goal,
        details={
            "p50_ms": mesh.latency(0.5) * 1000, "p99_ms": mesh.latency(0.99) * 1000,
            "generator_cores": mesh.generator_share, **(details or {}),
        },
    )  # fmt: skip
