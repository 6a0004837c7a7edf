"""The child processes of a worker, and the line of documents that wait for one.

A child is warm before it is given out, is used for a bounded number of documents, and is replaced in the background
when it fails or has served its time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from gpu_services.chunking.events import Event, Order, Ready
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, MeshError, Overloaded
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

INTERACTIVE_BEFORE_BULK = 4
"""With both lanes full, bulk gets every fifth child: interactive work waits little, bulk always moves."""
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
    """

    def __init__(
        self,
        start_child: Callable[[], Awaitable[DocumentProcess]],
        limits: PoolLimits,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._start_child = start_child
        self._limits = limits
        self._pause = pause
        self._idle: list[DocumentProcess] = []
        self._in_use: set[DocumentProcess] = set()
        self._lanes: dict[Priority, deque[asyncio.Future[DocumentProcess]]] = {lane: deque() for lane in Priority}
        self._interactive_streak = 0
        self._admitted = 0
        self._starting: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._typical_seconds = 2.0
        self.failure: MeshError | None = None
        self.ready: Ready | None = None

    async def start(self) -> None:
        """Start the children; return when the first is warm, raise Unavailable when it does not become so."""
        self._idle.append(await self._started())
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
        return any(child.usable for child in self._idle) and not any(self._lanes.values())

    def replace_dead(self) -> None:
        """Start others in the place of idle children that have ended, before a document asks for them."""
        dead = [child for child in self._idle if not child.usable]
        self._idle = [child for child in self._idle if child.usable]
        for child in dead:
            self._retire(child)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Admit one document: raise Overloaded where as many are inside as may run and wait."""
        most = self._limits.children + self._limits.max_queued
        if self._admitted >= most:
            raise Overloaded(
                f"{self._admitted} documents are being uploaded, converted or waiting; try again later.",
                reason="QUEUE_FULL",
                retry_after=max(1.0, round(self._typical_seconds * self._admitted / self._limits.children, 1)),
            )
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    @asynccontextmanager
    async def child(self, deadline: Deadline, priority: Priority) -> AsyncIterator[DocumentProcess]:
        """A warm child of one's own until the block is left; left with work undone, the child is ended.

        Raises:
            DeadlineExceeded: none became free in time.
        """
        child = await self._take(deadline, priority)
        began = asyncio.get_running_loop().time()
        self._in_use.add(child)
        try:
            yield child
        finally:
            self._typical_seconds += 0.2 * (asyncio.get_running_loop().time() - began - self._typical_seconds)
            self._in_use.discard(child)
            self._give_back(child)

    async def _take(self, deadline: Deadline, priority: Priority) -> DocumentProcess:
        self.replace_dead()
        if self._idle and not any(self._lanes.values()):
            return self._idle.pop()
        waiting = self._new_future()
        self._lanes[priority].append(waiting)
        while not (child := await self._arrival(waiting, deadline, priority)).usable:
            self._retire(child)  # it ended between being handed over and being received
            waiting = self._new_future()
            self._lanes[priority].appendleft(waiting)  # its turn had come
        return child

    @staticmethod
    def _new_future() -> asyncio.Future[DocumentProcess]:
        return asyncio.get_running_loop().create_future()

    async def _arrival(
        self, waiting: asyncio.Future[DocumentProcess], deadline: Deadline, priority: Priority
    ) -> DocumentProcess:
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
        if waiting in self._lanes[priority]:
            self._lanes[priority].remove(waiting)
        elif waiting.done() and not waiting.cancelled():
            self._give_back(waiting.result())  # a child arrived in the same moment

    def _give_back(self, child: DocumentProcess) -> None:
        if not child.usable or child.documents >= self._limits.documents_per_child:
            self._retire(child)
            return
        waiting = self._next_in_line()
        if waiting is None:
            self._idle.append(child)
        else:
            waiting.set_result(child)

    def _next_in_line(self) -> asyncio.Future[DocumentProcess] | None:
        interactive, bulk = self._lanes[Priority.INTERACTIVE], self._lanes[Priority.BULK]
        while interactive or bulk:
            bulk_turn = not interactive or (bool(bulk) and self._interactive_streak >= INTERACTIVE_BEFORE_BULK)
            waiting = (bulk if bulk_turn else interactive).popleft()
            if not waiting.done():
                self._interactive_streak = 0 if bulk_turn else self._interactive_streak + 1
                return waiting
        return None

    def _retire(self, child: DocumentProcess) -> None:
        child.kill()
        self._spawn(child.close(), self._closing)
        self._replace()

    def _replace(self) -> None:
        self._spawn(self._add_child(), self._starting)

    async def _add_child(self) -> None:
        """Start a child; try again with growing pauses: the machine may be short of memory for a while."""
        seconds = 0.5
        while True:
            try:
                child = await self._started()
            except MeshError as error:
                self.failure = error
                await self._pause(seconds)
                seconds = min(2 * seconds, _LONGEST_PAUSE)
                continue
            self._give_back(child)
            return

    async def _started(self) -> DocumentProcess:
        child = await self._start_child()
        self.failure = None
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
