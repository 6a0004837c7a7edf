"""Embedding through the mesh over embedding in process: 32 texts a request, 8 requests in flight."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.inprocess import InProcess
from bench.load import Lane, Send, closed_loop, connected, post
from bench.measure import Round, Series, Side, interleave, paired_spread
from bench.report import Goal, Row
from bench.subject import Comparison
from bench.texts import Length, random_texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mesh.clients import AsyncEmbeddingServiceClient

TEXTS_PER_REQUEST = 32
CONCURRENCY = 8
_REQUESTS = 64
_CHECKED_REQUESTS, _QUICK_CHECKED_REQUESTS = 8, 2
_BASELINE = "in process"
_AGAINST = "encode in process"
_SPEED = Goal(at_least=3.0)
_FIDELITY = Goal(at_least=0.999, of_value=True)


@dataclass(frozen=True, slots=True)
class _Way:
    """A way through the mesh: how to send request ``number``, and how to get its vectors."""

    send: Send
    vectors: Callable[[int], Awaitable[NDArray[np.float32]]]


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
            texts = random_texts(_REQUESTS * TEXTS_PER_REQUEST, length)
            ways = {
                "HTTP base64": _over_http(lanes, subject.url, _requests(texts), "base64"),
                "HTTP float": _over_http(lanes, subject.url, _requests(texts), "float"),
                "gRPC": _over_grpc(client, _requests(texts)),
            }
            rows.extend(await _compare(comparison, length, texts, ways))
    return rows


def _requests(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[start : start + TEXTS_PER_REQUEST] for start in range(0, len(texts), TEXTS_PER_REQUEST)]


def _over_http(lanes: Sequence[Lane], url: str, requests: Sequence[Sequence[str]], form: str) -> _Way:
    written = [
        post(url, "/v1/embeddings", {"model": "", "input": list(texts), "encoding_format": form}) for texts in requests
    ]

    async def send(lane: int, number: int) -> float:
        await lanes[lane].ask(written[number % len(written)])
        return TEXTS_PER_REQUEST

    async def vectors(number: int) -> NDArray[np.float32]:
        return read_vectors(await lanes[0].ask(written[number]))

    return _Way(send, vectors)


def _over_grpc(client: AsyncEmbeddingServiceClient, requests: Sequence[Sequence[str]]) -> _Way:
    async def send(_: int, number: int) -> float:
        return float((await client.embed(requests[number % len(requests)])).rows)

    return _Way(send, lambda number: client.generate_embeddings(requests[number]))


def read_vectors(answer: bytes) -> NDArray[np.float32]:
    """The vectors in an answer of ``/v1/embeddings``, in either form: float32 (n, dim)."""
    import numpy as np

    vectors = [item["embedding"] for item in json.loads(answer)["data"]]
    return np.array(
        [np.frombuffer(base64.b64decode(each), dtype="<f4") if isinstance(each, str) else each for each in vectors],
        dtype=np.float32,
    )


async def _compare(comparison: Comparison, length: Length, texts: Sequence[str], ways: Mapping[str, _Way]) -> list[Row]:
    options, baseline = comparison.options, comparison.baseline
    checked = _requests(texts)[: _QUICK_CHECKED_REQUESTS if options.quick else _CHECKED_REQUESTS]
    # Comparing the vectors first also warms every way.
    reference = [await baseline.vectors(request) for request in checked]
    cosines = {name: await _least_cosine(way, reference) for name, way in ways.items()}
    sides = {name: _side(way, options.seconds) for name, way in ways.items()}
    sides[_BASELINE] = await _in_process(baseline, texts, options.seconds)
    series = await interleave(sides, rounds=options.rounds, unit="texts/s", tell=comparison.tell)
    kind = f"{length.name.lower()} texts"
    rows = [_row(f"{name}, {kind}", series[name], series[_BASELINE]) for name in ways]
    rows.append(
        Row(
            part="embedding", what=f"least cosine to float32, {kind}", unit="", mesh=min(cosines.values()),
            goal=_FIDELITY, details={"texts": float(len(checked) * TEXTS_PER_REQUEST), **cosines},
        )
    )  # fmt: skip
    return rows


async def _least_cosine(way: _Way, reference: Sequence[NDArray[np.float32]]) -> float:
    """The worst vector's cosine to its reference; both are of length 1."""
    return min([float((await way.vectors(number) * each).sum(axis=1).min()) for number, each in enumerate(reference)])


def _side(way: _Way, seconds: float) -> Side:
    return lambda: closed_loop(way.send, concurrency=CONCURRENCY, seconds=seconds)


async def _in_process(baseline: InProcess, texts: Sequence[str], seconds: float) -> Side:
    """The baseline's side: as many of the texts as it embeds in about ``seconds``, in whole batches."""
    trial = texts[: 4 * TEXTS_PER_REQUEST]
    await baseline.embedding_seconds(trial)
    rate = len(trial) / await baseline.embedding_seconds(trial)
    batches = max(1, min(round(rate * seconds / TEXTS_PER_REQUEST), len(texts) // TEXTS_PER_REQUEST))
    chosen = texts[: batches * TEXTS_PER_REQUEST]

    async def once() -> Round:
        return Round(len(chosen), await baseline.embedding_seconds(chosen))

    return once


def _row(what: str, mesh: Series, baseline: Series) -> Row:
    return Row(
        part="embedding", what=what, unit="texts/s", mesh=mesh.rate, baseline=baseline.rate, against=_AGAINST,
        spread=paired_spread(mesh, baseline), goal=_SPEED,
        details={
            "p50_ms": mesh.latency(0.5) * 1000, "p99_ms": mesh.latency(0.99) * 1000,
            "generator_cores": mesh.generator_share,
        },
    )  # fmt: skip
