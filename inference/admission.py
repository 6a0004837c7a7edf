"""The waiting work: two lanes, cut into batches of similar length. Pure: no thread, no lock, no event loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Generic, Protocol, TypeVar, cast

from mesh import tracing
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import MeshError

INTERACTIVE_BATCHES_BEFORE_BULK = 4
"""With both lanes full, bulk gets every fifth batch: interactive work waits little, bulk always moves."""

_WINDOW_BATCHES = 8
_WINDOW_ITEMS = 2048
"""How many batches' worth of the oldest items, and how many items at most, are looked at to find items of similar
length. More pads less, and costs time under the lock: 2048 are sorted in about a millisecond."""


class Sized(Protocol):
    """Work with a length."""

    @property
    def tokens(self) -> int:
        """Tokens that the engine will read."""
        ...


W = TypeVar("W", bound=Sized)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class BatchTimings:
    """Where a request's time went.

    Attributes:
        queue_seconds: from admission to its first batch.
        inference_seconds: of all batches it was part of.
        largest_batch: items in the largest of them, other callers' included.
    """

    queue_seconds: float
    inference_seconds: float
    largest_batch: int


@dataclass(frozen=True, slots=True)
class Batched(Generic[R]):
    """One result per item, in the caller's order."""

    results: list[R]
    timings: BatchTimings


@dataclass(slots=True, eq=False)
class Ticket(Generic[W, R]):
    """One caller's admitted work, as it is answered item by item.

    Attributes:
        results: one slot per item, in the caller's order.
        canary: goes before all others and alone, so that it proves the engine while requests fill the queue.
        waiting: keys of the items that still queue.
        failure: set once, when any item fails; the rest of the ticket is then not computed.
        traceparent: where its spans belong; empty where nobody traces it.
    """

    works: Sequence[W]
    deadline: Deadline
    priority: Priority
    admitted_at: float
    canary: bool = False
    results: list[R | None] = field(init=False)
    open_items: int = field(init=False)
    waiting: set[int] = field(init=False, default_factory=set)
    failure: MeshError | None = None
    abandoned: bool = False
    started_at: float | None = None
    inference_seconds: float = 0.0
    largest_batch: int = 0
    traceparent: str = field(default_factory=tracing.present)
    queue_told: bool = False

    def __post_init__(self) -> None:
        self.results = [None] * len(self.works)
        self.open_items = len(self.works)

    @property
    def over(self) -> bool:
        """Whether nobody needs its items computed any more."""
        return self.abandoned or self.failure is not None

    def answer(self) -> Batched[R]:
        """What the caller gets once no item is open. Raises the failure where there is one."""
        if self.failure is not None:
            raise copy.copy(self.failure)  # each caller's own: those of one batch would share its traceback
        queue_seconds = (self.started_at or self.admitted_at) - self.admitted_at
        timings = BatchTimings(queue_seconds, self.inference_seconds, self.largest_batch)
        # Without a failure every slot is filled.
        return Batched(cast("list[R]", self.results), timings)


@dataclass(frozen=True, slots=True, eq=False)
class Entry(Generic[W, R]):
    """One item in the queue: ``ticket.works[index]``."""

    key: int
    ticket: Ticket[W, R]
    index: int
    tokens: int

    @property
    def work(self) -> W:
        """What the engine computes."""
        return self.ticket.works[self.index]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchBudgets:
    """How large the next batch may be, in tokens, padding included.

    Attributes:
        tokens: of a batch of interactive work.
        bulk_tokens: of a batch of bulk work; smaller while interactive requests may come at any moment, since a batch
            that runs is not interrupted.
    """

    tokens: int
    bulk_tokens: int


class AdmissionQueue(Generic[W, R]):
    """Items waiting for the engine.

    Every batch holds the oldest item of the lane it is taken from, so that none starves, filled with the items closest
    to it in length, so that little padding is computed.

    Args:
        batch_tokens: the budget of one batch, padding included. A single longer item is a batch of its own.
    """

    def __init__(self, batch_tokens: int) -> None:
        self.batch_tokens = batch_tokens
        self.lane_tokens: dict[Priority, int] = dict.fromkeys(Priority, 0)
        self._lanes: dict[Priority, dict[int, Entry[W, R]]] = {priority: {} for priority in Priority}
        self._canaries: dict[int, Entry[W, R]] = {}
        self._next_key = 0
        self._interactive_streak = 0

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values())) + len(self._canaries)

    @property
    def tokens(self) -> int:
        """Tokens that wait in both lanes."""
        return sum(self.lane_tokens.values())

    @property
    def canary_waits(self) -> bool:
        """Whether the next batch is a canary."""
        return bool(self._canaries)

    def add(self, ticket: Ticket[W, R]) -> None:
        """Queue all items of ``ticket`` behind those of its lane."""
        lane = self._lane_of(ticket)
        for index, work in enumerate(ticket.works):
            entry = Entry(self._next_key, ticket, index, work.tokens)
            self._next_key += 1
            lane[entry.key] = entry
            ticket.waiting.add(entry.key)
            self.lane_tokens[ticket.priority] += entry.tokens

    def remove(self, ticket: Ticket[W, R]) -> None:
        """Take out what is left of ``ticket``: nobody waits for it."""
        lane = self._lane_of(ticket)
        for key in ticket.waiting:
            self.lane_tokens[ticket.priority] -= lane.pop(key).tokens
        ticket.waiting.clear()

    def take(self, budgets: BatchBudgets | None = None) -> list[Entry[W, R]]:
        """Remove and return the next batch; empty when nothing waits.

        An interactive batch takes no bulk along, which would keep its callers waiting longer than when alone; room in
        a bulk batch is filled with interactive work, which would wait for its end anyway.
        """
        if self._canaries:
            batch = list(self._canaries.values())
        else:
            chosen = self._choose_lane()
            if chosen is None:
                return []
            budget = self._budget(chosen, budgets)
            batch = self._cut(list(self._window(chosen, budget)), budget)
            self._interactive_streak = self._interactive_streak + 1 if chosen is Priority.INTERACTIVE else 0
        for entry in batch:
            del self._lane_of(entry.ticket)[entry.key]
            entry.ticket.waiting.discard(entry.key)
            self.lane_tokens[entry.ticket.priority] -= entry.tokens
        return batch

    def _lane_of(self, ticket: Ticket[W, R]) -> dict[int, Entry[W, R]]:
        return self._canaries if ticket.canary else self._lanes[ticket.priority]

    def _choose_lane(self) -> Priority | None:
        interactive, bulk = self._lanes[Priority.INTERACTIVE], self._lanes[Priority.BULK]
        if interactive and not (bulk and self._interactive_streak >= INTERACTIVE_BATCHES_BEFORE_BULK):
            return Priority.INTERACTIVE
        return Priority.BULK if bulk else None

    def _budget(self, chosen: Priority, budgets: BatchBudgets | None) -> int:
        if budgets is None:
            return self.batch_tokens
        wanted = budgets.tokens if chosen is Priority.INTERACTIVE else budgets.bulk_tokens
        return max(1, min(self.batch_tokens, wanted))

    def _window(self, chosen: Priority, budget: int) -> Iterator[Entry[W, R]]:
        """The oldest items that may share a batch of the chosen lane, up to a few batches' worth of tokens."""
        lanes = [self._lanes[chosen]]
        if chosen is Priority.BULK:
            lanes.append(self._lanes[Priority.INTERACTIVE])
        room = _WINDOW_BATCHES * budget
        for entry in islice(chain.from_iterable(lane.values() for lane in lanes), _WINDOW_ITEMS):
            yield entry
            room -= entry.tokens
            if room <= 0:
                return

    def _cut(self, window: list[Entry[W, R]], budget: int) -> list[Entry[W, R]]:
        """The run of similar length around the oldest item (the window's first) that fits the budget."""
        oldest = window[0]
        by_length = sorted(window, key=lambda entry: (entry.tokens, entry.key))
        low = high = by_length.index(oldest)
        while True:
            shorter = by_length[low - 1] if low else None
            longer = by_length[high + 1] if high + 1 < len(by_length) else None
            size = high - low + 2
            fits_shorter = shorter is not None and by_length[high].tokens * size <= budget
            fits_longer = longer is not None and longer.tokens * size <= budget
            if not (fits_shorter or fits_longer):
                return by_length[low : high + 1]
            if fits_longer and fits_shorter and shorter is not None and longer is not None:
                take_longer = longer.tokens - oldest.tokens <= oldest.tokens - shorter.tokens
            else:
                take_longer = fits_longer
            if take_longer:
                high += 1
            else:
                low -= 1
