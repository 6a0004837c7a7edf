"""The waiting work: two lanes, cut into batches of similar length. Pure: no thread, no lock, no event loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import MeshError

INTERACTIVE_BATCHES_BEFORE_BULK = 4
"""With both lanes full, bulk gets every fifth batch: interactive work waits little, bulk always moves."""

_WINDOW_BATCHES = 8
"""How many batches' worth of the oldest items are looked at to find items of similar length. More pads less, and costs
time under the lock."""


class Sized(Protocol):
    """Work with a length."""

    @property
    def tokens(self) -> int:
        """Tokens that the engine will read."""
        ...


W = TypeVar("W", bound=Sized)
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class Ticket(Generic[W, R]):
    """One caller's admitted work, as it is answered item by item.

    Attributes:
        results: one slot per item, in the caller's order.
        waiting: keys of the items that still queue.
        failure: set once, when any item fails; the rest of the ticket is then not computed.
    """

    works: Sequence[W]
    deadline: Deadline
    priority: Priority
    admitted_at: float
    results: list[R | None] = field(init=False)
    open_items: int = field(init=False)
    waiting: set[int] = field(init=False, default_factory=set)
    failure: MeshError | None = None
    abandoned: bool = False
    started_at: float | None = None
    inference_seconds: float = 0.0
    largest_batch: int = 0

    def __post_init__(self) -> None:
        self.results = [None] * len(self.works)
        self.open_items = len(self.works)

    @property
    def over(self) -> bool:
        """Whether nobody needs its items computed any more."""
        return self.abandoned or self.failure is not None


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
        self._next_key = 0
        self._interactive_streak = 0

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    @property
    def tokens(self) -> int:
        """Tokens that wait in both lanes."""
        return sum(self.lane_tokens.values())

    def add(self, ticket: Ticket[W, R]) -> None:
        """Queue all items of ``ticket`` behind those of its lane."""
        lane = self._lanes[ticket.priority]
        for index, work in enumerate(ticket.works):
            entry = Entry(self._next_key, ticket, index, work.tokens)
            self._next_key += 1
            lane[entry.key] = entry
            ticket.waiting.add(entry.key)
            self.lane_tokens[ticket.priority] += entry.tokens

    def remove(self, ticket: Ticket[W, R]) -> None:
        """Take out what is left of ``ticket``: nobody waits for it."""
        lane = self._lanes[ticket.priority]
        for key in ticket.waiting:
            self.lane_tokens[ticket.priority] -= lane.pop(key).tokens
        ticket.waiting.clear()

    def take(self) -> list[Entry[W, R]]:
        """Remove and return the next batch; empty when nothing waits.

        A batch that the chosen lane does not fill is filled from the other: padding would be computed anyway.
        """
        chosen = self._choose_lane()
        if chosen is None:
            return []
        batch = self._cut(list(self._window(chosen)))
        self._interactive_streak = self._interactive_streak + 1 if chosen is Priority.INTERACTIVE else 0
        for entry in batch:
            del self._lanes[entry.ticket.priority][entry.key]
            entry.ticket.waiting.discard(entry.key)
            self.lane_tokens[entry.ticket.priority] -= entry.tokens
        return batch

    def _choose_lane(self) -> Priority | None:
        interactive, bulk = self._lanes[Priority.INTERACTIVE], self._lanes[Priority.BULK]
        if interactive and not (bulk and self._interactive_streak >= INTERACTIVE_BATCHES_BEFORE_BULK):
            return Priority.INTERACTIVE
        return Priority.BULK if bulk else None

    def _window(self, chosen: Priority) -> Iterator[Entry[W, R]]:
        """The oldest items of the chosen lane, then of the other, up to a few batches' worth of tokens."""
        other = Priority.BULK if chosen is Priority.INTERACTIVE else Priority.INTERACTIVE
        room = _WINDOW_BATCHES * self.batch_tokens
        for lane in (self._lanes[chosen], self._lanes[other]):
            for entry in lane.values():
                yield entry
                room -= entry.tokens
                if room <= 0:
                    return

    def _cut(self, window: list[Entry[W, R]]) -> list[Entry[W, R]]:
        """The run of similar length around the oldest item (the window's first) that fits the budget."""
        oldest = window[0]
        by_length = sorted(window, key=lambda entry: (entry.tokens, entry.key))
        low = high = by_length.index(oldest)
        while True:
            shorter = by_length[low - 1] if low else None
            longer = by_length[high + 1] if high + 1 < len(by_length) else None
            size = high - low + 2
            fits_shorter = shorter is not None and by_length[high].tokens * size <= self.batch_tokens
            fits_longer = longer is not None and longer.tokens * size <= self.batch_tokens
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
