"""Batches that the engine failed, cut into parts that are tried again: so the request at fault is found."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic

from inference.admission import Entry, R, W
from inference.engines import DeviceOutOfMemory
from mesh.errors import GpuOutOfMemory, Internal, MeshError, Unavailable

DOUBTFUL_PARTS = 16
"""After so many failed parts without a success between them it may be the engine that is at fault. From then on single
requests are tried, and none of them is blamed before something has been computed."""


@dataclass(frozen=True, slots=True)
class GivenUp(Generic[W, R]):
    """Items that are not tried again, and why the engine failed them.

    Attributes:
        futile: the engine failed whatever it was given.
    """

    entries: list[Entry[W, R]]
    error: Exception
    futile: bool

    @property
    def failure(self) -> MeshError:
        """What their callers are told."""
        if isinstance(self.error, MeshError):
            return self.error
        if isinstance(self.error, DeviceOutOfMemory):
            return GpuOutOfMemory("One input alone does not fit the device's memory; send a shorter one.")
        if self.futile:
            return Unavailable("The engine fails; another worker may answer.", reason="ENGINE_FAILING", retry_after=1.0)
        return Internal("The engine failed on this request; the worker's log has the traceback.")


class Recovery(Generic[W, R]):
    """The parts of failed batches that wait to be tried again.

    An error is the fault of one request at most times, so a failing batch is halved between its requests until the one
    at fault stands alone. Running out of memory is the fault of the batch's size, so it is halved between its items.

    Several requests at fault and an engine that fails everything look alike for a while. What tells them apart is a
    success: of another request, or of the canary. Until there is one, requests that failed alone are held; where the
    canary fails, or nothing is left to try, the engine is at fault.
    """

    def __init__(self) -> None:
        self._parts: deque[list[Entry[W, R]]] = deque()
        self._held: list[tuple[list[Entry[W, R]], Exception]] = []
        self._failed_parts = 0
        self._trying = False
        self._condemned = False

    def __len__(self) -> int:
        return len(self._parts)

    def take(self, batch_tokens: int) -> list[Entry[W, R]]:
        """Remove and return the next part; empty when none waits. It fits the budget, padding included."""
        if not self._parts:
            return []
        self._trying = True
        part = self._parts.popleft()
        if self._doubtful:
            part = self._cut(part, _first_request(part))
        while len(part) > 1 and len(part) * max(entry.tokens for entry in part) > batch_tokens:
            part = self._cut(part, len(part) // 2)
        return part

    def fresh(self) -> list[GivenUp[W, R]]:
        """The next batch is none of the parts. Returns what is held where nothing is left to try."""
        self._trying = False
        return [] if self._parts else self._release(futile=True)

    def succeeded(self) -> list[GivenUp[W, R]]:
        """The engine computed a batch: it is well, and what is held was at fault."""
        self._failed_parts = 0
        self._condemned = False
        return self._release(futile=False)

    def failed(self, batch: list[Entry[W, R]], error: Exception) -> list[GivenUp[W, R]]:
        """The engine failed ``batch``. Returns what is given up; nothing when it is tried in parts, or is held."""
        if batch[0].ticket.canary:
            self._condemned = True
        if self._condemned:
            left = [*batch, *(entry for part in self._parts for entry in part)]
            self._parts.clear()
            return [GivenUp(left, error, futile=True), *self._release(futile=True)]
        out_of_memory = isinstance(error, DeviceOutOfMemory)
        halves = _halved_by_items(batch) if out_of_memory else _halved_by_requests(batch)
        if self._trying or halves:
            self._failed_parts += 1
        if not halves:
            return self._failed_alone(batch, error)
        if out_of_memory:
            # What is small enough is found by going down at once; the other parts are then cut to it.
            self._parts.extendleft(reversed(halves))
        else:
            # All parts of one size before the next smaller: a success shows early that the engine is well.
            self._parts.extend(halves)
        return []

    @property
    def _doubtful(self) -> bool:
        return self._failed_parts >= DOUBTFUL_PARTS

    def _failed_alone(self, batch: list[Entry[W, R]], error: Exception) -> list[GivenUp[W, R]]:
        speaks_for_itself = isinstance(error, (MeshError, DeviceOutOfMemory))
        if speaks_for_itself or not (self._doubtful and self._trying):
            return [GivenUp(batch, error, futile=False)]
        self._held.append((batch, error))
        return []

    def _release(self, *, futile: bool) -> list[GivenUp[W, R]]:
        held, self._held = self._held, []
        return [GivenUp(entries, error, futile) for entries, error in held]

    def _cut(self, part: list[Entry[W, R]], size: int) -> list[Entry[W, R]]:
        if size < len(part):
            self._parts.appendleft(part[size:])
        return part[:size]


def _first_request(part: list[Entry[W, R]]) -> int:
    """How many items at the part's beginning belong to one request."""
    return next((index for index, entry in enumerate(part) if entry.ticket is not part[0].ticket), len(part))


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
