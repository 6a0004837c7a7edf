"""One computation for everybody who asks for the same at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mesh.clients.embedding import Embeddings
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import AttemptTimedOut, DeadlineExceeded, MeshError, Unavailable

Keep = Callable[[Embeddings], Awaitable[None]]


class Flight:
    """A computation under way. It belongs to nobody who waits for it, and ends when nobody does any more."""

    def __init__(self, keys: Sequence[bytes], priority: Priority, work: Coroutine[Any, Any, Embeddings]) -> None:
        self.keys = keys
        self.task = asyncio.create_task(work)
        self._priority = priority
        self._waiting = 0
        self._given_up = False

    def takes(self, priority: Priority) -> bool:
        """Whether a request of this lane may wait for it: interactive work never waits for bulk work."""
        return not self._given_up and (self._priority is Priority.INTERACTIVE or priority is Priority.BULK)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Around the waiting: whoever leaves last ends it."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting and not self.task.done():
                self._given_up = True
                self.task.cancel()

    async def result(self, deadline: Deadline, *, joined: bool) -> Embeddings:
        """What was computed.

        Args:
            deadline: this caller's.
            joined: whether another caller began the computation.

        Raises:
            AttemptTimedOut, DeadlineExceeded: this caller's time is up; the computation goes on for the others.
            MeshError: the computation failed.
        """
        # A deadline of the mesh's own making is also that of what its caller began: the end is typed, and tells the
        # breaker. Of what another began it is not.
        is_the_works = deadline.imposed and not joined
        await asyncio.wait({self.task}, timeout=None if is_the_works else deadline.remaining())
        if not self.task.done():
            raise time_is_up(deadline)
        if self.task.cancelled():
            raise Unavailable("The gateway is about to end. Try again.", reason="DRAINING", retry_after=1.0)
        return self.task.result()


def time_is_up(deadline: Deadline) -> MeshError:
    """Why a caller waits no longer: the mesh's own time is up, or the caller's."""
    if deadline.imposed:
        return AttemptTimedOut("The texts were not embedded in time. Try again, or send less at once.")
    return DeadlineExceeded(
        "The request's time is up before its texts were embedded. Allow it more time or send less at once."
    )


class Flights:
    """All computations under way, by the keys of what they compute."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, Flight] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def under_way(self, key: bytes, priority: Priority) -> Flight | None:
        """The computation that will give this key's vector, where a request of this lane may wait for it."""
        flight = self._by_key.get(key)
        return flight if flight is not None and flight.takes(priority) else None

    def begin(
        self, keys: Sequence[bytes], priority: Priority, work: Coroutine[Any, Any, Embeddings], *, keep: Keep
    ) -> Flight:
        """Compute ``keys`` by ``work``. Hold the flight before anything else is awaited.

        Until ``keep`` has put the result where the next request looks for it, who asks gets it from here. What is kept
        at once is kept before those who wait go on.
        """
        flight = Flight(keys, priority, work)
        self._by_key.update(dict.fromkeys(keys, flight))
        self._hold(flight.task)
        flight.task.add_done_callback(lambda _: self._computed(flight, keep))
        return flight

    async def keep_beside(self, reply: Embeddings, keep: Keep) -> None:
        """Keep a result that nobody else waits for. What takes time does not keep the caller."""
        self._hold(asyncio.create_task(_kept(reply, keep)))
        await asyncio.sleep(0)

    async def close(self) -> None:
        """End all of them."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    def _computed(self, flight: Flight, keep: Keep) -> None:
        if flight.task.cancelled() or flight.task.exception() is not None:
            self._forget(flight)
            return
        keeping = asyncio.create_task(_kept(flight.task.result(), keep))
        self._hold(keeping)
        keeping.add_done_callback(lambda _: self._forget(flight))

    def _forget(self, flight: Flight) -> None:
        for key in flight.keys:
            if self._by_key.get(key) is flight:
                del self._by_key[key]

    def _hold(self, task: asyncio.Task[Any]) -> None:
        """The loop alone does not keep a task."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _kept(reply: Embeddings, keep: Keep) -> None:
    await keep(reply)
