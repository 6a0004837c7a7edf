"""How fast the engine is, as its batches show, and how large the next batch may be. Pure: no thread, no lock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inference.admission import BatchBudgets, Entry
from mesh.clock import Clock
from mesh.context import Priority

LONGEST_BATCH_SECONDS = 1.0
"""No batch is meant to take longer, where its items can be told apart: who comes next, a canary among them, waits for
its end. A device that is faster than its largest batch never notices."""

INTERACTIVE_WINDOW_SECONDS = 10.0
"""After an interactive request, bulk batches stay short for so long: the next one may come at any moment."""

_LONGEST_ALLOWANCE_SECONDS = 60.0

_BULK_OVER_INTERACTIVE = 1.5
"""How long a bulk batch takes beside a typical interactive request. One that comes just after it began waits for its
end and is then computed: two and a half times what it takes alone. Shorter batches cost bulk dearly: at the length of
one request most held a single text on two CPUs, and beside one request after the other bulk kept a fifth of its pace.
"""

_HOP_SECONDS = 0.0015
"""By so much bulk batches may be longer: what a request takes beside the engine's time is, on a fast engine, most of
what its caller sees. Not more, since that part takes longer beside a bulk job, too."""

_SPEED_MEMORY_SECONDS = 1.0
"""Of computing: the speed follows a change of load within about so long, however short the batches are."""

_DISPROOF_WEIGHT = 0.3
"""Of a batch that was more than twice as fast as is believed: no batch is so by chance, and small ones are short."""

_TYPICAL_WEIGHT = 0.2
"""Of the newest interactive batch in what counts as typical."""

_BULK_WEIGHT = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """One batch that the engine has computed.

    Attributes:
        entries: what it held.
        seconds: how long it took.
        backlogged: whether more was waiting when it was cut.
    """

    entries: Sequence[Entry[Any, Any]]
    seconds: float
    backlogged: bool

    @property
    def tokens(self) -> int:
        """Tokens read, padding left out."""
        return sum(entry.tokens for entry in self.entries)

    @property
    def padded_tokens(self) -> int:
        """Tokens computed, padding included."""
        return len(self.entries) * max(entry.tokens for entry in self.entries)


class Pace:
    """Learns from the engine's batches.

    Args:
        batch_tokens: the largest batch, padding included.
        tokens_per_second: the speed as measured when the engine was chosen; 0 when unknown.
        clock: passed in by tests.

    Attributes:
        tokens_per_second: the engine's speed while work waits, padding left out; 0.0 before it is known.
    """

    def __init__(self, *, batch_tokens: int, tokens_per_second: float, clock: Clock) -> None:
        self.tokens_per_second = tokens_per_second
        self._batch_tokens = batch_tokens
        self._clock = clock
        self._interactive_at = -math.inf
        self._interactive_seconds: float | None = None
        self._bulk_tokens_per_second: float | None = None

    def interactive_expected(self) -> bool:
        """Whether an interactive request may come at any moment."""
        return self._clock() - self._interactive_at < INTERACTIVE_WINDOW_SECONDS

    def seconds(self, tokens: float) -> float:
        """How long the engine takes for ``tokens``; 0.0 while its speed is unknown."""
        return tokens / self.tokens_per_second if self.tokens_per_second else 0.0

    def allowance_seconds(self, batch: Sequence[Entry[Any, Any]]) -> float:
        """How much longer than others this batch may take before the engine counts as stuck.

        0 unless it is one long item, which cannot be cut.
        """
        expected = self.seconds(batch[0].tokens) if len(batch) == 1 else 0.0
        return min(_LONGEST_ALLOWANCE_SECONDS, 2 * expected) if expected > LONGEST_BATCH_SECONDS else 0.0

    def arrived(self, priority: Priority) -> None:
        """A request was admitted."""
        if priority is Priority.INTERACTIVE:
            self._interactive_at = self._clock()

    def computed(self, batch: Computed) -> None:
        """The engine has computed a batch."""
        if batch.seconds <= 0:
            return
        speed = batch.tokens / batch.seconds
        # A batch that was not full says little about the speed, since its time is mostly overhead; but where it is
        # faster than is believed possible, the belief is wrong, and those whom it refuses cannot correct it.
        full = batch.backlogged or batch.tokens >= self._batch_tokens // 4
        if full or speed > self.tokens_per_second:
            self._learn_speed(speed, batch.seconds)
        if all(entry.ticket.priority is Priority.INTERACTIVE for entry in batch.entries):
            self._learn_interactive(batch)
        else:
            speed = batch.padded_tokens / batch.seconds
            self._bulk_tokens_per_second = _moved(self._bulk_tokens_per_second, speed, _BULK_WEIGHT)

    def _learn_interactive(self, batch: Computed) -> None:
        """How long one of the batch's requests would have taken had it come alone.

        A batch grows with the time that its requests waited: taken as it is, longer bulk batches would make longer
        interactive ones and these again longer bulk batches. So what the others added is left out.
        """
        requests = len({id(entry.ticket) for entry in batch.entries})
        others = batch.padded_tokens * (1 - 1 / requests)
        alone = max(batch.seconds / requests, batch.seconds - self.seconds(others))
        known = self._interactive_seconds
        # One that the machine held up is not typical, and would lengthen what the next ones wait for.
        self._interactive_seconds = _moved(known, min(alone, 2 * known) if known else alone, _TYPICAL_WEIGHT)

    def _learn_speed(self, newest: float, seconds: float) -> None:
        if not self.tokens_per_second:
            self.tokens_per_second = newest
            return
        # By ratios, so that a speed that is wrong by orders of magnitude is corrected as fast in either direction.
        # A batch that took longer than batches take was held up (the process stood still), or the speed is quite wrong:
        # the next batches tell which.
        weight = 1 - math.exp(-min(seconds, LONGEST_BATCH_SECONDS) / _SPEED_MEMORY_SECONDS)
        if newest > 2 * self.tokens_per_second:
            weight = max(weight, _DISPROOF_WEIGHT)
        self.tokens_per_second *= (newest / self.tokens_per_second) ** weight

    def budgets(self) -> BatchBudgets:
        """How large the next batch may be."""
        tokens = self._batch_tokens
        if self.tokens_per_second:
            tokens = max(1, min(tokens, int(LONGEST_BATCH_SECONDS * self.tokens_per_second)))
        return BatchBudgets(tokens=tokens, bulk_tokens=min(tokens, self._short_bulk_tokens() or tokens))

    def _short_bulk_tokens(self) -> int | None:
        """As many as take the time that interactive requests can wait; None while none is expected.

        The speed is that of the latest bulk batches, the fixed cost of a batch included, so that the size settles
        where their time is as wanted.
        """
        speed = self._bulk_tokens_per_second or self.tokens_per_second
        if not self.interactive_expected() or self._interactive_seconds is None or not speed:
            return None
        return max(1, int(speed * (_BULK_OVER_INTERACTIVE * self._interactive_seconds + _HOP_SECONDS)))


def _moved(known: float | None, newest: float, weight: float) -> float:
    return newest if known is None else known + weight * (newest - known)
