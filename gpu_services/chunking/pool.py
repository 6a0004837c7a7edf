"""The child processes of a worker, and the line of documents that wait for one.

A child is warm before it is given out. One that fails is replaced; one that has done its share of documents works on
until its successor is warm, so that documents wait for a start only where a child was lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from gpu_services.chunking.events import Event, Order, Ready
from gpu_services.chunking.metrics import publish
from gpu_services.chunking.queueing import Places, Queue
from mesh.clock import Clock, monotonic
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, Internal, MeshError, Unavailable
from mesh.resilience import ServiceTime
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

WITHOUT_CHILD_SECONDS = 8.0
"""A child starts within a few seconds. A pool that has had none for longer, and for several times what a start takes on
this machine, cannot be said to serve."""
FAILED_STARTS = 3
"""So many in a row are no passing shortage: a pool without a child then says why."""
_START_GUESS_SECONDS = 2.0
_STARTS_MISSED = 4.0
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


class DocumentProcess(Protocol):
    """A process that does one document at a time; `child_process.Child` is the real one.

    ``documents`` is how many it was given; the pool counts them.
    """

    documents: int
    ready: Ready | None

    @property
    def usable(self) -> bool:
        """Whether it can take a document."""

    def events(self, order: Order, *, seconds: float) -> AsyncGenerator[Event, None]:
        """The events of one document, up to and including Finished or Refused."""

    def kill(self) -> None:
        """End it at once."""

    async def close(self) -> None:
        """End it and collect what is left of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """How many documents are done at once, how many may wait, and after how many a child is replaced.

    ``children`` and ``reserved`` are those of `Places`.

    A child that is due works on until its successor is warm. With ``documents_per_child`` 1 it does not: there each
    document has a child to itself, whatever it has to wait for it.
    """

    children: int
    reserved: int
    max_queued: int
    documents_per_child: int

    @property
    def places(self) -> Places:
        """The same for the queue."""
        return Places(children=self.children, reserved=self.reserved, queued=self.max_queued)


class ChildPool:
    """Gives out warm children, interactive requests first.

    Args:
        start_child: starts one child and returns when it is warm.
        pause: waits between two failing starts; asyncio.sleep but for tests.
        clock: source of time.
    """

    def __init__(
        self,
        start_child: Callable[[], Awaitable[DocumentProcess]],
        limits: PoolLimits,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Clock = monotonic,
    ) -> None:
        self._start_child = start_child
        self._limits = limits
        self._places = limits.places
        self._pause = pause
        self._clock = clock
        self._idle: deque[DocumentProcess] = deque()
        self._in_use: set[DocumentProcess] = set()
        self._queue: Queue[asyncio.Future[DocumentProcess]] = Queue(
            self._places, until_child=self._seconds_until_child, clock=clock
        )
        publish(self._queue, self._places)
        self._starting: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._coming = 0
        self._start_time = ServiceTime(_START_GUESS_SECONDS)
        self._first_tried = asyncio.Event()
        self._failure: MeshError | None = None
        self._failed_starts = 0
        self._stopped = False
        self._without_child_since: float | None = clock()
        self.ready: Ready | None = None

    async def start(self) -> None:
        """Start the first child, then the others beside its work; return when it is warm.

        It returns as well when a few starts have failed, so that ``unhealthy`` can say why: they are tried again for
        ever, and the pool serves as soon as one succeeds.
        """
        self._begin_start()
        await self._first_tried.wait()

    async def stop(self) -> None:
        """End all children."""
        self._stopped = True
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        await asyncio.gather(*self._closing, *(child.close() for child in (*self._idle, *self._in_use)))
        self._idle.clear()

    @property
    def free(self) -> bool:
        """Whether a document of either lane would be begun at once."""
        idle = any(child.usable for child in self._idle)
        return idle and self._queue.empty and all(map(self._queue.has_child_for, Priority))

    def unhealthy(self) -> MeshError | None:
        """Why no document can be done: there is no child, and none comes up. None while there is one, or one may come.

        The documents that wait are turned away with the same reason: another worker may have a child for them.
        """
        self.arrange()
        reason = self._why_without_child()
        if reason is not None:
            while (waiting := self._queue.turn_away()) is not None:
                waiting.set_exception(_again(reason))
        return reason

    def _why_without_child(self) -> MeshError | None:
        since = self._without_child_since
        if since is None:
            return None
        if self._failure is not None and self._failed_starts >= FAILED_STARTS:
            return _again(self._failure)
        if self._clock() - since < max(WITHOUT_CHILD_SECONDS, _STARTS_MISSED * self._start_time.mean):
            return None
        return Unavailable(
            "No process that opens documents has come up for longer than one takes to start; starting goes on. "
            "Try again in a few seconds.",
            reason="CHILD_STARTING",
            retry_after=2.0,
        )

    def arrange(self) -> None:
        """Retire idle children that have ended or are replaced, start those that are missing, give out the free."""
        if self._stopped:
            return
        for child in self._to_retire():
            self._idle.remove(child)
            child.kill()
            self._spawn(child.close(), self._closing)
        self._count_children()
        for _ in range(self._places.at_once - sum(map(self._stays, self._children)) - self._coming):
            self._begin_start()
        self._hand_out()

    def place(self, deadline: Deadline, priority: Priority) -> AbstractContextManager[None]:
        """Admit one document for the length of the block, before its upload is read.

        Raises:
            MeshError: no document can be done for now; the reason is that of ``unhealthy``.
            Overloaded: too many are inside, or the wait is longer than the deadline; come back after ``retry_after``.
            DeadlineExceeded: the time is up already.
        """
        if (reason := self.unhealthy()) is not None:
            raise reason
        return self._queue.place(deadline, priority)

    @asynccontextmanager
    async def child(
        self, deadline: Deadline, priority: Priority, *, check: bool = False
    ) -> AsyncIterator[DocumentProcess]:
        """A warm child of one's own until the block is left; left with work undone, the child is ended.

        ``check``: this is a document of our own. How long it takes says nothing about others, and the child is as
        good as before.

        Raises:
            DeadlineExceeded: none became free in time.
            MeshError: none came up; the reason is that of ``unhealthy``.
        """
        child = await self._take(deadline, priority)
        if not check:
            child.documents += 1
            self.arrange()  # where it was the child's last, its successor starts now
        try:
            with nullcontext() if check else self._queue.learning(priority):
                yield child
        finally:
            self._give_back(child, priority, rest=check)

    async def _take(self, deadline: Deadline, priority: Priority) -> DocumentProcess:
        waiting = self._new_future()
        self._queue.join(waiting, priority)
        self.arrange()
        while not (child := await self._arrival(waiting, deadline, priority)).usable:
            # It ended between being handed over and being received. The turn had come, and is kept.
            waiting = self._new_future()
            self._queue.join(waiting, priority, at_the_head=True)
            self._give_back(child, priority)
        return child

    @staticmethod
    def _new_future() -> asyncio.Future[DocumentProcess]:
        return asyncio.get_running_loop().create_future()

    async def _arrival(
        self, waiting: asyncio.Future[DocumentProcess], deadline: Deadline, priority: Priority
    ) -> DocumentProcess:
        if waiting.done():
            return waiting.result()
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await waiting
        except TimeoutError:
            self._give_up(waiting, priority)
            raise DeadlineExceeded(
                "The request's time was up before a process was free for the document; allow more time or try again."
            ) from None
        except asyncio.CancelledError:
            self._give_up(waiting, priority)
            raise

    def _give_up(self, waiting: asyncio.Future[DocumentProcess], priority: Priority) -> None:
        if self._queue.leave(waiting, priority) or not waiting.done() or waiting.cancelled():
            return
        if waiting.exception() is None:
            self._give_back(waiting.result(), priority)  # a child arrived in the same moment

    def _give_back(self, child: DocumentProcess, priority: Priority, *, rest: bool = False) -> None:
        """Offer a child again; with ``rest`` after all others, so that each is checked in turn."""
        self._in_use.discard(child)
        self._queue.give_back(priority)
        if rest:
            self._idle.appendleft(child)
        else:
            self._idle.append(child)
        self.arrange()

    def _hand_out(self) -> None:
        # The one that worked last goes first: its caches are warm, and children do not come to their end all at once.
        while self._idle and (waiting := self._queue.next()) is not None:
            child = self._idle.pop()
            self._in_use.add(child)
            waiting.set_result(child)

    # -- who is there, who is due ---------------------------------------------------------------------------------

    @property
    def _children(self) -> Sequence[DocumentProcess]:
        return (*self._idle, *self._in_use)

    def _stays(self, child: DocumentProcess) -> bool:
        """Whether it needs no successor yet. One at work is judged when it is given back."""
        return child.documents < self._limits.documents_per_child

    def _to_retire(self) -> list[DocumentProcess]:
        dead = [child for child in self._idle if not child.usable]
        due = [child for child in self._idle if child.usable and not self._stays(child)]
        replaced = max(0, len(self._children) - len(dead) - self._places.at_once)
        return dead + (due if self._limits.documents_per_child == 1 else due[:replaced])

    def _count_children(self) -> None:
        if self._children:
            self._without_child_since = None
        elif self._without_child_since is None:
            self._without_child_since = self._clock()

    def _seconds_until_child(self) -> float:
        """Seconds until there is a child again; 0.0 where there is one, or one may come at any moment."""
        since = self._without_child_since
        return 0.0 if since is None else max(0.0, self._start_time.mean - (self._clock() - since))

    # -- starts ---------------------------------------------------------------------------------------------------

    def _begin_start(self) -> None:
        self._coming += 1
        self._spawn(self._add_child(), self._starting)

    async def _add_child(self) -> None:
        """Start a child; try again with growing pauses: the machine may be short of memory for a while."""
        pause = _FIRST_PAUSE
        while (child := await self._started()) is None:
            await self._pause(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._coming -= 1
        self._first_tried.set()
        self._idle.append(child)
        self.arrange()

    async def _started(self) -> DocumentProcess | None:
        """A child that is warm; None where the start failed."""
        began = self._clock()
        try:
            child = await self._start_child()
        except MeshError as error:
            self._start_failed(error)
            return None
        except Exception:
            # Whatever it is, the next start may do better, and a pool that stopped trying would stay without.
            log.exception("a child process could not be started")
            self._start_failed(
                Internal("A process that opens documents could not be started; see the worker's log.", retry_after=5.0)
            )
            return None
        self._start_time.learn(self._clock() - began)
        if self._failed_starts:
            log.info("a child process starts again", extra=fields(failed_starts=self._failed_starts))
        self._failure, self._failed_starts = None, 0
        if self.ready is None and child.ready is not None:
            _tell(child.ready)
        self.ready = child.ready
        return child

    def _start_failed(self, error: MeshError) -> None:
        self._failure = error
        self._failed_starts += 1
        log.warning(
            "a child process does not start; it is tried again",
            extra=fields(failed_starts=self._failed_starts, reason=error.reason, error=error.message),
        )
        if self._failed_starts >= FAILED_STARTS:
            self._first_tried.set()

    @staticmethod
    def _spawn(work: Awaitable[None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.ensure_future(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def _tell(ready: Ready) -> None:
    for warning in ready.warnings:
        log.warning(warning)
    log.info(
        "a child process is warm",
        extra=fields(
            docling=ready.docling_version,
            pdf_pipeline=ready.pdf_pipeline,
            sandbox=",".join(ready.sandbox),
            resident_mib=ready.resident_bytes // 2**20,
        ),
    )


def _again(error: MeshError) -> MeshError:
    """The same error to raise once more: one that is raised twice collects the tracebacks of both."""
    return type(error)(error.message, reason=error.reason, param=error.param, retry_after=error.retry_after)
