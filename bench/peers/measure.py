"""One peer beside the mesh: 32 texts a request as in the table, and its curve for the chart."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.chart import Curve
from bench.curve import MOST, curve
from bench.curve import requests as single_texts
from bench.embedding import CONCURRENCY, REQUESTS, TEXTS_PER_REQUEST, checked_requests, speed_row
from bench.load import Lane, RequestFailed, connected, post
from bench.measure import interleave
from bench.peers.catalog import Peer, Setting
from bench.processes import DidNotStart, Running, running
from bench.report import Row, number
from bench.subject import Comparison
from bench.texts import Length, random_texts
from bench.ways import Requests, Way, in_requests, least_cosine, over_http, written_send

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PREPARES_WITHIN_SECONDS = 300.0
_FIRST_ANSWER_WITHIN_SECONDS = 60.0


async def measure(peer: Peer, environments: Path, model: Path, comparison: Comparison) -> tuple[list[Row], Curve]:
    """The rows and the curve of one peer.

    Raises:
        DidNotStart: it did not, or gave no first answer.
        RequestFailed: a request failed, its own or the mesh's.
    """
    comparison.tell(f"{peer.name}: starting it")
    async with _started(peer, environments, model) as started:
        rows = await _rows(peer, started, comparison)
        async with connected(started.url, MOST) as lanes:
            way = over_peer(peer, lanes, started.url, single_texts())
            return rows, await curve(peer.name, way, comparison.options, comparison.tell)


async def _rows(peer: Peer, started: Running, comparison: Comparison) -> list[Row]:
    options, subject = comparison.options, comparison.subject
    rows = []
    for length in (Length.SHORT, Length.LONG):
        texts = random_texts(REQUESTS * TEXTS_PER_REQUEST, length)
        requests = in_requests(texts, TEXTS_PER_REQUEST)
        async with (
            connected(started.url, CONCURRENCY) as theirs,
            connected(subject.url, CONCURRENCY) as ours,
        ):
            peers = over_peer(peer, theirs, started.url, requests)
            mesh = over_http(ours, subject.url, requests, "base64")
            checked = requests[: checked_requests(quick=options.quick)]
            cosine = await _cosine_of(peer, peers, [await comparison.baseline.vectors(each) for each in checked])
            await mesh.vectors(0)
            sides = {
                "mesh": mesh.side(concurrency=CONCURRENCY, seconds=options.seconds),
                peer.name: peers.side(concurrency=CONCURRENCY, seconds=options.seconds),
            }
            series = await interleave(sides, rounds=options.rounds, unit="texts/s", tell=comparison.tell)
        rows.append(
            speed_row(
                "peers", f"HTTP, {length.name.lower()} texts, over {peer.name}", series["mesh"], series[peer.name],
                against=f"its least cosine {number(cosine)}",
                details={
                    "baseline_least_cosine": cosine,
                    "baseline_p50_ms": series[peer.name].latency(0.5) * 1000,
                    "baseline_p99_ms": series[peer.name].latency(0.99) * 1000,
                },
            )
        )  # fmt: skip
    return rows


async def _cosine_of(peer: Peer, way: Way, reference: Sequence[NDArray[np.float32]]) -> float:
    """How faithful it is; its first answers warm it, too."""
    try:
        async with asyncio.timeout(_FIRST_ANSWER_WITHIN_SECONDS):
            return await least_cosine(way, reference)
    except TimeoutError:
        raise DidNotStart(f"{peer.name} gave no answer within {_FIRST_ANSWER_WITHIN_SECONDS:.0f} s.") from None
    except (KeyError, ValueError, TypeError) as error:
        raise RequestFailed(f"{peer.name} answers in another form than expected: {type(error).__name__}.") from error


def over_peer(peer: Peer, lanes: Sequence[Lane], url: str, requests: Requests) -> Way:
    """Through a peer's own HTTP."""
    written = [post(url, peer.path, peer.body(texts)) for texts in requests]

    async def vectors(number: int) -> NDArray[np.float32]:
        return peer.vectors(await lanes[0].ask(written[number % len(written)]))

    return Way(written_send(lanes, written, requests), vectors)


@asynccontextmanager
async def _started(peer: Peer, environments: Path, model: Path) -> AsyncIterator[Running]:
    with tempfile.TemporaryDirectory(prefix="peer-") as scratch:
        setting = peer.setting(environments=environments, model=model, scratch=Path(scratch))
        if peer.prepare is not None:
            await _prepare(peer, setting, peer.prepare(setting))
        async with running(peer.started(setting)) as process:
            yield process


async def _prepare(peer: Peer, setting: Setting, command: Sequence[str | Path]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **peer.quiet(setting)}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_PREPARES_WITHIN_SECONDS):
            words, _ = await process.communicate()
    except TimeoutError:
        raise DidNotStart(f"{peer.name} could not be prepared within {_PREPARES_WITHIN_SECONDS:.0f} s.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise DidNotStart(
            f"{peer.name} could not be prepared. Its last words:\n{words[-1500:].decode(errors='replace')}"
        )
