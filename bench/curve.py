"""Throughput and latency as concurrency grows, one text a request: the load that a service of interactive users has."""

from __future__ import annotations

from bench.chart import Curve, Point
from bench.load import connected
from bench.measure import Series, Tell
from bench.options import Options
from bench.subject import Comparison
from bench.texts import Length, random_texts
from bench.ways import Requests, Way, in_requests, over_grpc, over_http

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
QUICK_CONCURRENCIES = (1, 8, 64)
MOST = max(CONCURRENCIES)
_LONGEST_SECONDS = 2.0
_TEXTS = 4096


def requests() -> Requests:
    """What every side of the chart is sent."""
    return in_requests(random_texts(_TEXTS, Length.SHORT), 1)


async def measure(comparison: Comparison) -> list[Curve]:
    """The mesh's curves.

    Raises:
        CannotMeasure: the embedding hop does not serve.
        RequestFailed: a request failed.
        MeshError: a gRPC call failed.
    """
    from mesh.clients import AsyncEmbeddingServiceClient

    subject, options = comparison.subject, comparison.options
    target = subject.target("embedding", options.embedding_target)
    async with AsyncEmbeddingServiceClient(target) as client, connected(subject.url, MOST) as lanes:
        ways = {
            "mesh over HTTP": over_http(lanes, subject.url, requests(), "base64"),
            "mesh over gRPC": over_grpc(client, requests()),
        }
        return [await curve(name, way, options, comparison.tell) for name, way in ways.items()]


async def curve(name: str, way: Way, options: Options, tell: Tell) -> Curve:
    """One side's curve."""
    seconds = min(options.seconds, _LONGEST_SECONDS)
    points = []
    for concurrency in QUICK_CONCURRENCIES if options.quick else CONCURRENCIES:
        side = way.side(concurrency=concurrency, seconds=seconds)
        await way.side(concurrency=concurrency, seconds=seconds / 4)()  # warms it at this concurrency
        found = Series((await side(),))
        points.append(Point(concurrency, found.rate, found.latency(0.5) * 1000, found.latency(0.95) * 1000))
        tell(f"{name}, concurrency {concurrency}: {found.rate:,.0f} texts/s, median {points[-1].p50_ms:.1f} ms")
    return Curve(name, tuple(points))
