"""Ways to have texts embedded: over HTTP, over gRPC, by a peer. Each can be driven, and asked for its vectors."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.inprocess import InProcess
from bench.load import Lane, Send, closed_loop, post
from bench.measure import Round, Side
from ops.local.status import api_key

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mesh.clients import AsyncEmbeddingServiceClient

Requests = Sequence[Sequence[str]]
"""The texts of each request, sent again and again in this order."""


@dataclass(frozen=True, slots=True)
class Way:
    """How to send request ``number``, and how to get its vectors: float32 (n, dim), each of length 1."""

    send: Send
    vectors: Callable[[int], Awaitable[NDArray[np.float32]]]

    def side(self, *, concurrency: int, seconds: float) -> Side:
        """A side whose rounds keep so many requests in flight."""
        return lambda: closed_loop(self.send, concurrency=concurrency, seconds=seconds)


def in_requests(texts: Sequence[str], size: int) -> Requests:
    """The texts, so many a request."""
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def over_http(lanes: Sequence[Lane], url: str, requests: Requests, form: str) -> Way:
    """Through ``/v1/embeddings`` of a gateway, with vectors as ``base64`` or as ``float``."""
    written = [
        post(url, "/v1/embeddings", {"model": "", "input": list(texts), "encoding_format": form}, key=api_key())
        for texts in requests
    ]

    async def vectors(number: int) -> NDArray[np.float32]:
        return read_vectors(await lanes[0].ask(written[number % len(written)]))

    return Way(written_send(lanes, written, requests), vectors)


def written_send(lanes: Sequence[Lane], written: Sequence[bytes], requests: Requests) -> Send:
    """Sends what is written, each request on the lane that is free, and counts its texts."""

    async def send(lane: int, number: int) -> float:
        position = number % len(written)
        await lanes[lane].ask(written[position])
        return float(len(requests[position]))

    return send


def over_grpc(client: AsyncEmbeddingServiceClient, requests: Requests) -> Way:
    """Through a worker's gRPC."""

    async def send(_: int, number: int) -> float:
        return float((await client.embed(requests[number % len(requests)])).rows)

    return Way(send, lambda number: client.generate_embeddings(requests[number % len(requests)]))


def read_vectors(answer: bytes) -> NDArray[np.float32]:
    """The vectors in an answer of ``/v1/embeddings``, in either form: float32 (n, dim)."""
    import numpy as np

    vectors = [item["embedding"] for item in json.loads(answer)["data"]]
    return np.array(
        [np.frombuffer(base64.b64decode(each), dtype="<f4") if isinstance(each, str) else each for each in vectors],
        dtype=np.float32,
    )


async def least_cosine(way: Way, reference: Sequence[NDArray[np.float32]]) -> float:
    """The worst cosine of a way's first requests to their references; all vectors are of length 1."""
    return min([float((await way.vectors(number) * each).sum(axis=1).min()) for number, each in enumerate(reference)])


async def encode_side(baseline: InProcess, texts: Sequence[str], seconds: float) -> Side:
    """The baseline's side: as many of the texts, in one call, as it embeds in about ``seconds``."""
    trial = texts[:128]
    await baseline.embedding_seconds(trial)
    count = _as_many(len(trial) / await baseline.embedding_seconds(trial) * seconds, len(texts))

    async def once() -> Round:
        return Round(count, await baseline.embedding_seconds(texts[:count]))

    return once


async def one_by_one_side(baseline: InProcess, texts: Sequence[str], seconds: float) -> Side:
    """The same with one call for each text."""
    trial = texts[:16]
    await baseline.one_by_one_seconds(trial)
    count = _as_many(len(trial) / await baseline.one_by_one_seconds(trial) * seconds, len(texts))

    async def once() -> Round:
        return Round(count, await baseline.one_by_one_seconds(texts[:count]))

    return once


def _as_many(wanted: float, there_are: int) -> int:
    """About so many, in whole batches of 32."""
    return min(there_are, max(32, round(wanted / 32) * 32))
