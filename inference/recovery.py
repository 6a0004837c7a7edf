"""Batches that the engine failed, cut into parts that are tried again: so the request at fault is found."""

from __future__ import annotations

from collections import deque
from typing import Generic

from inference.admission import Entry, R, W
from inference.engines import DeviceOutOfMemory
from mesh.errors import GpuOutOfMemory, Internal, MeshError, Unavailable

FUTILE_PARTS = 16
"""After so many failed parts without a success between them no single request is at fault but the engine. One request
at fault among any number never looks like that: of two halves, one is computed."""


class Recovery(Generic[W, R]):
    """The parts of failed batches that wait to be tried again.

    An error is the fault of one request at most times, so a failing batch is halved between its requests until the one
    at fault stands alone. Running out of memory is the fault of the batch's size, so it is halved between its items.
    """

    def __init__(self) -> None:
        self._parts: deque[list[Entry[W, R]]] = deque()
        self._failed_parts = 0
        self._trying = False

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def futile(self) -> bool:
        """Whether all that is tried fails, so that halving only multiplies it."""
        return self._failed_parts >= FUTILE_PARTS

    def take(self, batch_tokens: int) -> list[Entry[W, R]]:
        """Remove and return the next part; empty when none waits. It fits the budget, padding included."""
        if not self._parts:
            return []
        self._trying = True
        part = self._parts.popleft()
        while len(part) > 1 and len(part) * max(entry.tokens for entry in part) > batch_tokens:
            middle = len(part) // 2
            self._parts.appendleft(part[middle:])
            part = part[:middle]
        return part

    def fresh(self) -> None:
        """The next batch is none of the parts."""
        self._trying = False

    def succeeded(self) -> None:
        """The engine computed a batch."""
        self._failed_parts = 0

    def failed(self, batch: list[Entry[W, R]], *, out_of_memory: bool) -> list[Entry[W, R]]:
        """The engine failed ``batch``. Returns what of it, and of all parts, is given up; empty when it was halved."""
        halves = _halved_by_items(batch) if out_of_memory else _halved_by_requests(batch)
        if self._trying or halves:
            self._failed_parts += 1
        if self.futile:
            given_up = [*batch, *(entry for part in self._parts for entry in part)]
            self._parts.clear()
            return given_up
        if not halves:
            return batch
        if out_of_memory:
            # What is small enough is found by going down at once; the other parts are then cut to it.
            self._parts.extendleft(reversed(halves))
        else:
            # All parts of one size before the next smaller: a success shows early that the engine is well.
            self._parts.extend(halves)
        return []


def _halved_by_items(batch: list[Entry[W, R]]) -> list[list[Entry[W, R]]]:
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]] if middle else []


def _halved_by_requests(batch: list[Entry[W, R]]) -> list[list[Entry[W, R]]]:
    by_request: dict[int, list[Entry[W, R]]] = {}
    for entry in batch:
        by_request.setdefault(id(entry.ticket), []).append(entry)
    requests = list(by_request.values())
    middle = len(requests) // 2
    halves = (requests[:middle], requests[middle:])
    return [[entry for request in half for entry in request] for half in halves] if middle else []


def failure_of(error: Exception, *, futile: bool) -> MeshError:
    """What the callers are told whose batch failed."""
    if isinstance(error, MeshError):
        return error
    if isinstance(error, DeviceOutOfMemory):
        return GpuOutOfMemory("One input alone does not fit the device's memory; send a shorter one.")
    if futile:
        return Unavailable("The engine fails; another worker may answer.", reason="ENGINE_FAILING", retry_after=1.0)
    return Internal("The engine failed on this request; the worker's log has the traceback.")
