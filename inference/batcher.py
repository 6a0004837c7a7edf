"""Continuous batching: callers await on the event loop, one thread keeps the engine busy.

While the engine computes one batch, the next forms in the queue; it is cut at the moment the engine is free, so that
late arrivals still join and cancelled work is already gone. An idle engine starts at once. The engine's thread takes
its work under a lock by itself: a busy event loop never leaves a device waiting.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic

from inference.admission import AdmissionQueue, Batched, BatchTimings, Entry, R, Ticket, W
from inference.engines import DeviceOutOfMemory
from inference.metrics import BatchMetrics
from inference.pace import Computed, Pace
from inference.recovery import GivenUp, Recovery
from inference.room import Reservation, Room
from inference.traces import BatchTraces
from mesh.clock import Clock, monotonic
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, Internal, MeshError, Unavailable
from mesh.telemetry import fields, get_logger, quoting

log = get_logger(__name__)

_JOIN_SECONDS = 3.0
"""Nobody waits for the batch that runs when the worker ends; longer than this it is not waited for either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How much is computed at once and how much may wait.

    Attributes:
        batch_tokens: budget of one batch, padding included.
        queued_tokens: tokens that may wait. At least one request's maximum, or the largest requests never get in.
        initial_tokens_per_second: the engine's speed as measured when it was chosen; 0 when unknown.
    """

    batch_tokens: int
    queued_tokens: int
    initial_tokens_per_second: float = 0.0


class Batcher(Generic[W, R]):
    """Runs every caller's items through one function in shared batches.

    Args:
        run: computes a batch on the engine's thread, one result per item in order. It may raise DeviceOutOfMemory
            (the batch is split), a MeshError (it reaches the callers concerned), or anything else (Internal). A failing
            batch is split until the request at fault stands alone.
        limits: see BatchLimits.
        capability: name for metrics, log lines and the thread.
        give_way: see Engine.give_way; called before each batch, on the engine's thread.
        clock: passed in by tests.
    """

    def __init__(
        self,
        run: Callable[[Sequence[W]], Sequence[R]],
        limits: BatchLimits,
        *,
        capability: str,
        give_way: Callable[[bool], None] = lambda _: None,
        clock: Clock = monotonic,
    ) -> None:
        self._run = run
        self._give_way = give_way
        self._clock = clock
        self._metrics = BatchMetrics(capability, queued_tokens=limits.queued_tokens)
        self._traces = BatchTraces(capability, clock)
        self._capability = capability
        self._queue: AdmissionQueue[W, R] = AdmissionQueue(limits.batch_tokens)
        self._changed = threading.Condition()
        self._futures: dict[Ticket[W, R], asyncio.Future[None]] = {}
        self._recovery: Recovery[W, R] = Recovery()
        self._pace = Pace(
            batch_tokens=limits.batch_tokens, tokens_per_second=limits.initial_tokens_per_second, clock=clock
        )
        self._room = Room(limits.queued_tokens, queue=self._queue, pace=self._pace, metrics=self._metrics, clock=clock)
        self._running_tokens = 0
        self._runs_canary = False
        self._allowance_seconds = 0.0
        self._backlogged = False
        self._gives_way = False
        self._failures = 0
        self._last_progress = clock()
        self._draining = False
        self._broken: MeshError | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the engine's thread. Call on the event loop that will submit."""
        self._loop = asyncio.get_running_loop()
        # A daemon: a device call that never returns must not keep the process from ending.
        self._thread = threading.Thread(target=self._serve, name=f"{self._capability}-engine", daemon=True)
        self._thread.start()

    @contextmanager
    def reserved(self, tokens: int, *, deadline: Deadline, priority: Priority) -> Iterator[Reservation]:
        """Hold room for a request of about so many tokens while it is made ready, before any work is put into it.

        What is submitted with the reservation is not refused any more for want of room.

        Raises:
            Overloaded, Unavailable: as ``submit`` would.
        """
        with self._changed:
            self._require_serving()
            reservation = self._room.reserve(tokens, deadline=deadline, priority=priority, running=self._running_tokens)
        try:
            yield reservation
        finally:
            with self._changed:
                self._room.release(reservation)

    async def submit(
        self,
        works: Sequence[W],
        *,
        deadline: Deadline,
        priority: Priority,
        canary: bool = False,
        reservation: Reservation | None = None,
    ) -> Batched[R]:
        """Compute ``works`` and return their results in order.

        Cancelling the awaiting task takes what still waits out of the queue.

        Args:
            works: the items.
            deadline: when the caller stops waiting.
            priority: the lane to queue in.
            canary: proves the engine: it goes before all others, and a full queue does not keep it out.
            reservation: room that is held for it.

        Raises:
            Overloaded: too many tokens wait, or the wait is longer than the deadline; retry_after is measured.
            DeadlineExceeded: the time was up before all of it was computed.
            GpuOutOfMemory: one item alone does not fit the device.
            Internal: the engine failed on it.
            Unavailable: draining, or the engine fails whatever it is given.
        """
        if not works:
            return Batched([], BatchTimings(0.0, 0.0, 0))
        deadline.require()
        if self._loop is None:
            raise RuntimeError("submit before start")
        ticket: Ticket[W, R] = Ticket(works, deadline, priority, admitted_at=self._clock(), canary=canary)
        done = self._loop.create_future()
        with self._changed:
            self._admit(ticket, reservation)
            self._futures[ticket] = done
            self._changed.notify()
        try:
            async with asyncio.timeout(deadline.remaining()):
                await done
        except TimeoutError as error:
            self._metrics.refused("deadline")
            raise _too_late() from error
        except asyncio.CancelledError:
            self._metrics.refused("cancelled")
            raise
        finally:
            self._forget(ticket)
        return ticket.answer()

    def progress(self) -> float:
        """Seconds for which admitted work has waited without a batch beginning or ending; 0.0 when idle.

        What one long item may take, which cannot be cut, is left out.
        """
        with self._changed:
            waited = self._clock() - self._last_progress - self._allowance_seconds
            return max(0.0, waited) if self._busy() else 0.0

    def occupied(self) -> bool:
        """Whether the engine computes a batch now that is no canary: one that is asked for waits for its end."""
        with self._changed:
            return bool(self._running_tokens) and not self._runs_canary

    def failures(self) -> int:
        """How many batches the engine failed since it last computed one; 0 when all is well."""
        return self._failures

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait now."""
        return self._queue.tokens

    @property
    def tokens_per_second(self) -> float:
        """The engine's speed as a running average; 0.0 before it is known."""
        return self._pace.tokens_per_second

    async def stop(self) -> None:
        """Refuse new work, finish what was admitted, end the thread. Returns at once when never started."""
        with self._changed:
            self._draining = True
            self._changed.notify()
        if self._thread is not None:
            # A device call that hangs must not hold up the process's end.
            await asyncio.to_thread(self._thread.join, _JOIN_SECONDS)

    # -- on the event loop, holding the lock --------------------------------------------------------------------------

    def _busy(self) -> bool:
        return bool(self._running_tokens or len(self._queue) or len(self._recovery))

    def _admit(self, ticket: Ticket[W, R], reservation: Reservation | None) -> None:
        self._require_serving()
        if not ticket.canary:
            wanted = sum(each.tokens for each in ticket.works)
            if reservation is not None:
                self._room.use(reservation, wanted)
            else:
                self._room.require(
                    wanted, deadline=ticket.deadline, priority=ticket.priority, running=self._running_tokens
                )
            self._pace.arrived(ticket.priority)
        if not self._busy():
            self._last_progress = ticket.admitted_at
        self._queue.add(ticket)
        self._metrics.queued(self._queue.tokens)

    def _require_serving(self) -> None:
        if self._broken is not None:
            raise copy.copy(self._broken)  # each caller's own, or they share one traceback
        if self._draining:
            self._metrics.refused("draining")
            raise Unavailable("The worker is draining; another one will answer.", reason="DRAINING", retry_after=1.0)

    def _forget(self, ticket: Ticket[W, R]) -> None:
        with self._changed:
            self._futures.pop(ticket, None)
            ticket.abandoned = True
            self._queue.remove(ticket)
            self._metrics.queued(self._queue.tokens)
        self._traces.left(ticket)

    # -- on the engine's thread ---------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while batch := self._next_batch():
                self._compute(batch)
                self._end()
        except BaseException:
            log.exception("the engine's thread ended", extra=fields(capability=self._capability))
            broken = Internal("The engine stopped; the worker has to be restarted.", reason="ENGINE_BROKEN")
            self._fail_everything(broken)

    def _next_batch(self) -> list[Entry[W, R]]:
        """Wait for work, drop what nobody can use, and cut a batch. Empty when drained."""
        with self._changed:
            while True:
                batch = [entry for entry in self._take() if self._still_wanted(entry.ticket)]
                if batch:
                    self._begin(batch)
                    return batch
                if not len(self._queue) and not len(self._recovery):
                    if self._draining:
                        return []
                    self._changed.wait()

    def _take(self) -> list[Entry[W, R]]:
        """A canary, or a part of a failed batch, or the next batch of the queue."""
        if len(self._recovery) and not self._queue.canary_waits:
            return self._recovery.take(self._queue.batch_tokens)
        self._give_up(self._recovery.fresh())
        return self._queue.take(self._pace.budgets())

    def _still_wanted(self, ticket: Ticket[W, R]) -> bool:
        if not ticket.over and ticket.deadline.expired:
            self._metrics.refused("deadline")
            self._settle(ticket, _too_late())
        return not ticket.over

    def _begin(self, batch: list[Entry[W, R]]) -> None:
        now = self._clock()
        self._last_progress = now
        self._running_tokens = sum(entry.tokens for entry in batch)
        self._runs_canary = batch[0].ticket.canary
        self._allowance_seconds = self._pace.allowance_seconds(batch)
        self._backlogged = len(self._queue) > 0
        bulk = any(entry.ticket.priority is Priority.BULK for entry in batch)
        self._gives_way = bulk and self._pace.interactive_expected()
        self._metrics.queued(self._queue.tokens)
        for entry in batch:
            if entry.ticket.started_at is None:
                entry.ticket.started_at = now
                self._metrics.waited(entry.ticket.priority, now - entry.ticket.admitted_at)

    def _end(self) -> None:
        with self._changed:
            self._last_progress = self._clock()
            self._running_tokens = 0
            self._allowance_seconds = 0.0

    def _compute(self, batch: list[Entry[W, R]]) -> None:
        started = self._clock()
        try:
            self._give_way(self._gives_way)
            results = self._run([entry.work for entry in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"the engine answered {len(results)} results for {len(batch)} items")
        except Exception as error:
            self._recover(batch, error)
            self._traces.computed(batch, started, self._clock(), loop=self._loop, error=error)
            return
        ended = self._clock()
        self._finish(batch, results, ended - started)
        self._traces.computed(batch, started, ended, loop=self._loop)

    def _recover(self, batch: list[Entry[W, R]], error: Exception) -> None:
        """Have the parts of a failed batch tried again, or fail the request that stands alone."""
        out_of_memory = isinstance(error, DeviceOutOfMemory)
        self._metrics.failed(out_of_memory=out_of_memory)
        if out_of_memory and len(batch) > 1:
            self._shrink_budget(batch)
        with self._changed:
            self._failures += 1
            parts = len(self._recovery)
            given_up = self._recovery.failed(batch, error)
            split = len(self._recovery) > parts
        if split:
            self._metrics.split(out_of_memory=out_of_memory)
        self._give_up(given_up)

    def _shrink_budget(self, batch: list[Entry[W, R]]) -> None:
        """Memory that did not suffice once will not suffice again: the next batches are cut smaller from the start."""
        computed = len(batch) * max(entry.tokens for entry in batch)
        with self._changed:
            self._queue.batch_tokens = max(1, min(self._queue.batch_tokens, computed // 2))
            budget = self._queue.batch_tokens
        log.warning("out of memory: smaller batches", extra=fields(capability=self._capability, batch_tokens=budget))

    def _give_up(self, given_up: list[GivenUp[W, R]]) -> None:
        for each in given_up:
            items = quoting(capability=self._capability, items=len(each.entries))
            log.error("a batch failed", exc_info=each.error, extra=items)
            failure = each.failure
            with self._changed:
                for entry in each.entries:
                    if not entry.ticket.over:
                        self._settle(entry.ticket, failure)

    def _finish(self, batch: list[Entry[W, R]], results: Sequence[R], seconds: float) -> None:
        computed = Computed(entries=batch, seconds=seconds, backlogged=self._backlogged)
        self._metrics.batch(
            size=len(batch), tokens=computed.tokens, padded_tokens=computed.padded_tokens, seconds=seconds
        )
        with self._changed:
            self._last_progress = self._clock()
            self._failures = 0
            given_up = self._recovery.succeeded()
            self._pace.computed(computed)
            for entry, result in zip(batch, results, strict=True):
                entry.ticket.results[entry.index] = result
                entry.ticket.open_items -= 1
            for ticket in {id(entry.ticket): entry.ticket for entry in batch}.values():
                ticket.inference_seconds += seconds
                ticket.largest_batch = max(ticket.largest_batch, len(batch))
                if ticket.open_items == 0:
                    self._settle(ticket, None)
        self._give_up(given_up)

    def _settle(self, ticket: Ticket[W, R], failure: MeshError | None) -> None:
        """Answer the caller, and take what is left of a failed ticket out of the queue. Holds the lock."""
        ticket.failure = failure
        self._queue.remove(ticket)
        future = self._futures.pop(ticket, None)
        if future is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_resolve, future)

    def _fail_everything(self, failure: MeshError) -> None:
        with self._changed:
            self._broken = failure
            self._failures += 1
            for ticket in list(self._futures):
                self._settle(ticket, failure)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The request's time was up before it was computed; allow it more time or send less at once."
    )
