"""The status, again and again, for all who look: one producer, which works only while somebody does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from gateway.admission import Places
from gateway.journal import REQUESTS
from gateway.lifecycle import Lifecycle
from gateway.peers import Peers
from gateway.refusals import RecentRefusals
from gateway.status import StatusReport
from mesh.errors import Overloaded

MOST_VIEWERS = 32
"""Each holds a connection, which nothing but its own leaving ends."""
POINTS = 60
"""Of the past that a new viewer is told, one for each interval."""
ASKED_EVERY = 5
"""Intervals between two questions to a worker what it serves: between them its hop tells of it."""
_COME_BACK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Watched:
    """What a snapshot is made of."""

    report: StatusReport
    peers: Peers
    refusals: RecentRefusals
    places: Places
    lifecycle: Lifecycle


class StatusFeed:
    """Lets up to `MOST_VIEWERS` look at the status as it changes.

    All of them get the same bytes. Nothing is queued for a viewer: one that reads slowly misses snapshots, and whoever
    writes its answer gives it up once it does not read at all.
    """

    def __init__(self, watched: Watched, *, interval_seconds: float = 1.0, most_viewers: int = MOST_VIEWERS) -> None:
        self._watched = watched
        self._interval_seconds = interval_seconds
        self._most_viewers = most_viewers
        self._viewers = 0
        self._producer: _Producer | None = None

    @property
    def viewers(self) -> int:
        """How many look."""
        return self._viewers

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events: the ``past``, then ``status`` after ``status``, until the gateway drains.

        Every stream begins with all that is known, so that whoever lost one loses nothing.

        Raises:
            Overloaded: as many look already as may.
        """
        if self._viewers >= self._most_viewers:
            raise Overloaded(
                f"{self._viewers} viewers follow the status already. Close one of them, or read /status instead.",
                reason="STATUS_VIEWERS",
                retry_after=_COME_BACK_SECONDS,
            )
        if self._producer is None or self._producer.ended:
            self._producer = _Producer(self._watched, self._interval_seconds)
        producer = self._producer
        self._viewers += 1
        try:
            yield producer.past()
            seen = 0
            while await producer.beyond(seen):
                seen = producer.number
                yield producer.frame
        finally:
            self._viewers -= 1
            if self._viewers == 0:
                # Not always the one that this viewer began with: that may have broken, and been replaced.
                self._producer.end()
                self._producer = None


class _Producer:
    """Takes a snapshot each interval. Begins at once, and ends when it is told to or when the gateway drains."""

    def __init__(self, watched: Watched, interval_seconds: float) -> None:
        self._watched = watched
        self._interval_seconds = interval_seconds
        self._pace = _Pace(watched.peers, interval_seconds)
        self.number = 0
        self.frame = b""
        self._turn = asyncio.Event()
        # In nobody's context: what is asked of the workers belongs to no viewer's request.
        self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())
        self._task.add_done_callback(lambda _: self._turn.set())

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self._task.done()

    def end(self) -> None:
        """Nobody looks any more."""
        self._task.cancel()

    async def beyond(self, seen: int) -> bool:
        """Wait for a snapshot after number ``seen``. Returns whether there is one; raises what ended the producer."""
        while self.number == seen:
            if self.ended:
                self._task.result()
                return False
            await self._turn.wait()
        return True

    def past(self) -> bytes:
        """What came before, for a viewer that comes now."""
        return _event("past", self.number, {"hops": self._pace.past(), "interval_seconds": self._interval_seconds})

    async def _run(self) -> None:
        while True:
            last = self._watched.lifecycle.draining
            self.frame = _event("status", self.number + 1, await self._document())
            self.number += 1
            turn, self._turn = self._turn, asyncio.Event()
            turn.set()
            if last:
                return
            await asyncio.sleep(self._interval_seconds)

    async def _document(self) -> dict[str, Any]:
        watched = self._watched
        asks = self.number % ASKED_EVERY == 0
        document, gpus = await asyncio.gather(watched.report.document(asks=asks), watched.report.gpus(asks=asks))
        now = self._pace.measure()
        for hop in document["hops"]:
            hop["now"] = now[hop["name"]]
        document["gateway"].update(
            in_progress=watched.places.in_progress,
            most_in_progress=watched.places.most,
            requests_per_second=self._pace.requests_per_second,
        )
        return {**document, "gpus": gpus, "refusals": watched.refusals.document()}


@dataclass(slots=True)
class _HopPace:
    mark: int
    points: deque[dict[str, float | None]] = field(default_factory=lambda: deque(maxlen=POINTS))


class _Pace:
    """How many calls each hop does, and how long they take, interval for interval."""

    def __init__(self, peers: Peers, interval_seconds: float) -> None:
        self._clock = asyncio.get_running_loop().time
        self._interval_seconds = interval_seconds
        self._hops = {peer.hop.status().name: peer.hop for peer in peers.all()}
        self._paces = {name: _HopPace(hop.times_since(0)[0]) for name, hop in self._hops.items()}
        self._measured = self._clock()
        self._answered = _requests_answered()
        self.requests_per_second = 0.0

    def measure(self) -> Mapping[str, dict[str, float | None]]:
        """Each hop since the last time: successful calls per second, and their times in milliseconds."""
        now = self._clock()
        seconds = max(now - self._measured, self._interval_seconds / 2)
        self._measured = now
        before, self._answered = self._answered, _requests_answered()
        self.requests_per_second = round((self._answered - before) / seconds, 1)
        return {name: self._measure(name, seconds) for name in self._hops}

    def past(self) -> dict[str, list[dict[str, float | None]]]:
        """Each hop's last intervals, oldest first."""
        return {name: list(pace.points) for name, pace in self._paces.items()}

    def _measure(self, name: str, seconds: float) -> dict[str, float | None]:
        pace = self._paces[name]
        before = pace.mark
        pace.mark, times = self._hops[name].times_since(before)
        ordered = sorted(times)
        point = {
            "calls_per_second": round((pace.mark - before) / seconds, 1),
            "p50_ms": _quantile_ms(ordered, 0.5),
            "p99_ms": _quantile_ms(ordered, 0.99),
        }
        pace.points.append(point)
        return point


def _quantile_ms(ordered: Sequence[float], share: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 2) if ordered else None


def _requests_answered() -> float:
    samples: Iterable[Any] = (sample for family in REQUESTS.collect() for sample in family.samples)
    return float(sum(sample.value for sample in samples if sample.name.endswith("_total")))


def _event(kind: str, number: int, document: Mapping[str, Any]) -> bytes:
    return b"event: %s\nid: %d\nretry: 2000\ndata: %s\n\n" % (kind.encode(), number, to_json(document))
