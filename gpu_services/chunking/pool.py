"""The child processes of a worker, and the line of documents that wait for one.

A child is warm before it is given out, is used for a bounded number of documents, and is replaced in the background
when it fails or has served its time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from gpu_services.chunking.events import Event, Order, Ready
from gpu_services.chunking.queueing import Places, Queue
from mesh.clock import Clock, monotonic
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, Internal, MeshError, Unavailable
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

WITHOUT_CHILD_SECONDS = 8.0
"""A child starts within a few seconds; a pool that has had none for longer cannot be said to serve."""
_LONGEST_PAUSE = 30.0


class DocumentProcess(Protocol):
    """A process that does one document at a time; `child_process.Child` is the real one."""

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
    """How many children there are, how many documents may wait, and how many documents a child does in its life."""

    children: int
    max_queued: int
    documents_per_child: int


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
        self._pause = pause
        self._clock = clock
        self._idle: deque[DocumentProcess] = deque()
        self._in_use: set[DocumentProcess] = set()
        self._queue: Queue[asyncio.Future[DocumentProcess]] = Queue(
            Places(limits.children, limits.max_queued), clock=clock
        )
        self._starting: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._failure: MeshError | None = None
        self._without_child_since: float | None = clock()
        self.ready: Ready | None = None

    async def start(self) -> None:
        """Start the children; return when the first is warm. Starts that fail are tried again for ever."""
        await self._add_child()
        for _ in range(self._limits.children - 1):
            self._replace()

    async def stop(self) -> None:
        """End all children."""
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        await asyncio.gather(*self._closing, *(child.close() for child in (*self._idle, *self._in_use)))
        self._idle.clear()

    @property
    def free(self) -> bool:
        """Whether a document would be begun at once."""
        return any(child.usable for child in self._idle) and self._queue.empty

    def unhealthy(self) -> MeshError | None:
        """Why no document can be done: there is no child, and none can be started. None while there is one."""
        self.replace_dead()
        since = self._without_child_since
        if since is None:
            return None
        if self._failure is None and self._clock() - since < WITHOUT_CHILD_SECONDS:
            return None
        return self._failure or Unavailable(
            "No process that opens documents is ready; one is being started. Try again in a few seconds.",
            reason="CHILD_STARTING",
            retry_after=2.0,
        )

    def replace_dead(self) -> None:
        """Start others in the place of idle children that have ended, before a document asks for them."""
        dead = [child for child in self._idle if not child.usable]
        self._idle = deque(child for child in self._idle if child.usable)
        for child in dead:
            self._retire(child)

    def place(self, deadline: Deadline, priority: Priority) -> AbstractContextManager[None]:
        """Admit one document for the length of the block, before its upload is read.

        Raises:
            Overloaded: too many are inside, or the wait is longer than the deadline; come back after ``retry_after``.
            DeadlineExceeded: the time is up already.
        """
        return self._queue.place(deadline, priority)

    @asynccontextmanager
    async def child(
        self, deadline: Deadline, priority: Priority, *, check: bool = False
    ) -> AsyncIterator[DocumentProcess]:
        """A warm child of one's own until the block is left; left with work undone, the child is ended.

        ``check``: how long this takes says nothing about documents.

        Raises:
            DeadlineExceeded: none became free in time.
        """
        child = await self._take(deadline, priority)
        try:
            with nullcontext() if check else self._queue.learning():
                yield child
        finally:
            self._give_back(child, priority)

    async def _take(self, deadline: Deadline, priority: Priority) -> DocumentProcess:
        self.replace_dead()
        waiting = self._new_future()
        self._queue.join(waiting, priority)
        self._hand_out()
        while not (child := await self._arrival(waiting, deadline, priority)).usable:
            self._give_back(child, priority)  # it ended between being handed over and being received
            waiting = self._new_future()
            self._queue.join(waiting, priority, at_the_head=True)  # its turn had come
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
        if not self._queue.leave(waiting, priority) and waiting.done() and not waiting.cancelled():
            self._give_back(waiting.result(), priority)  # a child arrived in the same moment

    def _give_back(self, child: DocumentProcess, priority: Priority) -> None:
        self._in_use.discard(child)
        self._queue.give_back(priority)
        self._offer(child)

    def _offer(self, child: DocumentProcess) -> None:
        if not child.usable or child.documents >= self._limits.documents_per_child:
            self._retire(child)
            return
        self._idle.append(child)
        self._count_children()
        self._hand_out()

    def _hand_out(self) -> None:
        # The one that has been idle longest goes first: so each proves itself in turn, by documents or by the canary.
        while self._idle and (waiting := self._queue.next()) is not None:
            child = self._idle.popleft()
            self._in_use.add(child)
            waiting.set_result(child)

    def _retire(self, child: DocumentProcess) -> None:
        child.kill()
        self._count_children()
        self._spawn(child.close(), self._closing)
        self._replace()

    def _count_children(self) -> None:
        if self._idle or self._in_use:
            self._without_child_since = None
        elif self._without_child_since is None:
            self._without_child_since = self._clock()

    def _replace(self) -> None:
        self._spawn(self._add_child(), self._starting)

    async def _add_child(self) -> None:
        """Start a child; try again with growing pauses: the machine may be short of memory for a while."""
        seconds = 0.5
        while True:
            try:
                child = await self._started()
            except MeshError as error:
                self._failure = error
            except Exception:
                # Whatever it is, the next start may do better, and a pool that stopped trying would stay without.
                log.exception("a child process could not be started")
                self._failure = Internal("A process that opens documents could not be started; see the worker's log.")
            else:
                self._offer(child)
                return
            await self._pause(seconds)
            seconds = min(2 * seconds, _LONGEST_PAUSE)

    async def _started(self) -> DocumentProcess:
        child = await self._start_child()
        self._failure = None
        if self.ready is None and child.ready is not None:
            for warning in child.ready.warnings:
                log.warning(warning)
            log.info(
                "a child process is warm",
                extra=fields(
                    docling=child.ready.docling_version,
                    pdf_pipeline=child.ready.pdf_pipeline,
                    sandbox=",".join(child.ready.sandbox),
                    resident_mib=child.ready.resident_bytes // 2**20,
                ),
            )
        self.ready = child.ready
        return child

    @staticmethod
    def _spawn(work: Awaitable[None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.ensure_future(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
