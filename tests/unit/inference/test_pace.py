"""The batch sizes' promise, with an engine of formulas and a clock of our own: interactive callers wait for little."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from inference.admission import AdmissionQueue, Ticket
from inference.pace import INTERACTIVE_WINDOW_SECONDS, LONGEST_BATCH_SECONDS, Computed, Pace
from inference.testing import FakeWork
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.testing import FakeClock

Queue = AdmissionQueue[FakeWork, int]


@dataclass
class Machine:
    """An engine that takes so long for a batch: a fixed cost, and a time for each token, padding included."""

    fixed_seconds: float
    tokens_per_second: float
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.queue: Queue = AdmissionQueue(self.batch_tokens)
        self.pace = Pace(batch_tokens=self.batch_tokens, tokens_per_second=self.tokens_per_second, clock=self.clock)

    def admit(self, lengths: list[int], priority: Priority) -> Ticket[FakeWork, int]:
        """One caller's request."""
        works = [FakeWork(tokens, 0) for tokens in lengths]
        ticket: Ticket[FakeWork, int] = Ticket(works, Deadline.after(600), priority, admitted_at=self.clock())
        self.queue.add(ticket)
        self.pace.arrived(priority)
        return ticket

    def compute(self) -> Computed | None:
        """One batch, at once; None when nothing waits. The clock moves to its end."""
        batch = self.queue.take(self.pace.budgets())
        if not batch:
            return None
        for entry in batch:
            entry.ticket.started_at = entry.ticket.started_at or self.clock()
            entry.ticket.open_items -= 1
        padded = len(batch) * max(entry.tokens for entry in batch)
        seconds = self.fixed_seconds + padded / self.tokens_per_second
        computed = Computed(entries=batch, seconds=seconds, backlogged=len(self.queue) > 0)
        self.clock.advance(seconds)
        self.pace.computed(computed)
        return computed


MACHINES = pytest.mark.parametrize(
    "machine",
    [
        lambda: Machine(fixed_seconds=0.002, tokens_per_second=5_000),
        lambda: Machine(fixed_seconds=0.0033, tokens_per_second=17_000, batch_tokens=512),
        lambda: Machine(fixed_seconds=0.004, tokens_per_second=400_000, batch_tokens=32_768),
    ],
    ids=["slow-cpu", "cpu", "gpu"],
)


_HOP_SECONDS = 0.003
"""What a request takes beside the engine: a client sends the next one so long after its answer."""


@dataclass
class Shared:
    """Interactive requests and bulk work on one engine, for twenty seconds.

    Attributes:
        load: of the engine's time, what interactive requests that come at random take; 0 means one client that sends
            the next as soon as it has its answer.
        latencies: of interactive requests, as their callers see them.
        bulk_tokens: computed for the bulk job.
    """

    run: Machine
    load: float
    with_interactive: bool = True
    with_bulk: bool = True
    latencies: list[float] = field(default_factory=list)
    bulk_tokens: int = 0

    def __post_init__(self) -> None:
        self._lengths, self._arrivals = random.Random(7), random.Random(8)
        self._due = self.run.clock() + 0.5
        self._waiting: list[Ticket[FakeWork, int]] = []

    def ended(self) -> Shared:
        """Itself, when the time has passed."""
        until = self.run.clock() + 20
        while self.run.clock() < until:
            self._admit()
            computed = self.run.compute()
            if computed is None:
                self.run.clock.advance(max(1e-6, self._due - self.run.clock()))
                continue
            bulk = [entry for entry in computed.entries if entry.ticket.priority is Priority.BULK]
            self.bulk_tokens += sum(entry.tokens for entry in bulk)
            self._answer()
        return self

    @property
    def p99(self) -> float:
        """Of the latencies, without the first few."""
        warm = sorted(self.latencies[10:])
        assert len(warm) > 300
        return warm[int(len(warm) * 0.99)]

    def _admit(self) -> None:
        while self.with_bulk and len(self.run.queue) < 500:
            self.run.admit([self._lengths.randint(8, 40) for _ in range(100)], Priority.BULK)
        while self.with_interactive and self._due <= self.run.clock():
            ticket = self.run.admit([32], Priority.INTERACTIVE)
            ticket.admitted_at = self._due
            self._waiting.append(ticket)
            alone = self.run.fixed_seconds + 32 / self.run.tokens_per_second
            self._due += self._arrivals.expovariate(self.load / alone) if self.load else math.inf

    def _answer(self) -> None:
        answered = [ticket for ticket in self._waiting if not ticket.open_items]
        self._waiting = [ticket for ticket in self._waiting if ticket.open_items]
        self.latencies += [self.run.clock() - ticket.admitted_at + _HOP_SECONDS for ticket in answered]
        if answered and not self.load:
            self._due = self.run.clock() + _HOP_SECONDS * self._arrivals.uniform(0.5, 1.5)


LOADS = pytest.mark.parametrize("load", [0.2, 0.0], ids=["at-random", "back-to-back"])


@LOADS
@MACHINES
def test_interactive_latency_under_bulk_load_stays_within_three_times_idle(
    machine: Callable[[], Machine], load: float
) -> None:
    """Beside a bulk job that never ends, the 99th percentile is at most three times that without it."""
    assert Shared(machine(), load).ended().p99 <= 3 * Shared(machine(), load, with_bulk=False).ended().p99


@LOADS
@MACHINES
def test_a_bulk_job_keeps_a_good_part_of_its_pace(machine: Callable[[], Machine], load: float) -> None:
    """At least a third of what it does alone, while interactive requests come one after the other or at random."""
    alone = Shared(machine(), load, with_interactive=False).ended().bulk_tokens
    assert Shared(machine(), load).ended().bulk_tokens >= alone / 3


def test_requests_that_were_computed_together_lengthen_bulk_batches_little() -> None:
    """A batch grows with the time that its requests waited; a larger one is no reason for longer bulk batches."""
    budgets = []
    for together in (1, 8):
        run = Machine(fixed_seconds=0.004, tokens_per_second=20_000)
        for _ in range(40):
            for _ in range(together):
                run.admit([32], Priority.INTERACTIVE)
            run.compute()
        budgets.append(run.pace.budgets().bulk_tokens)
    assert budgets[1] == pytest.approx(budgets[0], rel=0.1)


def test_a_request_that_the_machine_held_up_lengthens_bulk_batches_little() -> None:
    """One slow moment is not paid for by the requests that follow."""
    run = Machine(fixed_seconds=0.004, tokens_per_second=20_000)
    for _ in range(20):
        run.admit([32], Priority.INTERACTIVE)
        run.compute()
    before = run.pace.budgets().bulk_tokens
    run.fixed_seconds = 0.5
    run.admit([32], Priority.INTERACTIVE)
    run.compute()
    assert run.pace.budgets().bulk_tokens <= 1.3 * before


@MACHINES
def test_bulk_batches_are_large_again_when_no_interactive_request_comes(machine: Callable[[], Machine]) -> None:
    """Short batches are the price of interactive traffic, paid only while there is some."""
    run = machine()
    full = min(run.batch_tokens, int(LONGEST_BATCH_SECONDS * run.tokens_per_second))
    assert run.pace.budgets().bulk_tokens == full
    run.admit([32], Priority.INTERACTIVE)
    run.compute()
    short = run.pace.budgets().bulk_tokens
    assert short < full / 2
    run.clock.advance(INTERACTIVE_WINDOW_SECONDS)
    budgets = run.pace.budgets()
    assert budgets.bulk_tokens == budgets.tokens
    assert budgets.bulk_tokens > 2 * short


def test_the_size_of_short_batches_settles_where_they_take_the_wanted_time() -> None:
    """The fixed cost of a batch is learned, so that bulk gets as much done as its time allows."""
    run = Machine(fixed_seconds=0.02, tokens_per_second=10_000)
    last: Computed | None = None
    for _ in range(30):
        run.admit([200], Priority.INTERACTIVE)
        run.admit([10] * 100, Priority.BULK)
        run.compute()
        last = run.compute()
    assert last is not None
    assert last.seconds == pytest.approx(1.5 * 0.04 + 0.0015, rel=0.1)


def test_a_slow_engine_gets_batches_of_about_a_second() -> None:
    """Who comes next, a canary among them, never waits for a batch of many seconds."""
    run = Machine(fixed_seconds=0.01, tokens_per_second=300)
    run.admit([20] * 200, Priority.BULK)
    while computed := run.compute():
        assert computed.seconds <= LONGEST_BATCH_SECONDS + 0.1


def test_the_speed_follows_the_engine_within_seconds() -> None:
    """A wrong first measure, or an engine that slows down, corrects the estimated waits soon."""
    run = Machine(fixed_seconds=0.0, tokens_per_second=1000, batch_tokens=512)
    run.pace.tokens_per_second = 1e7
    run.admit([10] * 2000, Priority.BULK)
    started = run.clock()
    while run.clock() - started < 6 and run.compute():
        pass
    assert run.pace.tokens_per_second == pytest.approx(1000, rel=0.2)


def test_one_batch_during_which_the_process_stood_still_is_not_believed_alone() -> None:
    """However long it took, the next batches of an ordinary load bring the speed back."""
    run = Machine(fixed_seconds=0.001, tokens_per_second=20_000)
    run.admit([500] * 16, Priority.INTERACTIVE)
    held_up = run.queue.take(run.pace.budgets())
    run.pace.computed(Computed(entries=held_up, seconds=600.0, backlogged=True))
    assert run.pace.tokens_per_second > 20_000 / 500
    for _ in range(20):
        run.admit([500] * 2, Priority.INTERACTIVE)
        run.compute()
    assert run.pace.tokens_per_second == pytest.approx(20_000, rel=0.5)


def test_lone_small_batches_disprove_a_speed_that_is_too_low() -> None:
    """Where the belief refuses everybody else, what an idle engine computes corrects it."""
    run = Machine(fixed_seconds=0.002, tokens_per_second=20_000)
    run.pace.tokens_per_second = 20.0
    for _ in range(30):
        run.admit([50], Priority.INTERACTIVE)
        run.compute()
    assert run.pace.tokens_per_second > 5_000


def test_small_batches_without_a_backlog_say_nothing_about_the_speed() -> None:
    """An idle worker's lone requests are mostly overhead, and would make its queue look long."""
    run = Machine(fixed_seconds=0.05, tokens_per_second=10_000)
    for _ in range(50):
        run.admit([5], Priority.INTERACTIVE)
        run.compute()
    assert run.pace.tokens_per_second == 10_000


@pytest.mark.parametrize(("lengths", "allowed"), [([8000], 16.0), ([900], 0.0), ([450, 450], 0.0), ([90_000], 60.0)])
def test_only_one_long_item_may_take_longer(lengths: list[int], allowed: float) -> None:
    """A text that a slow machine reads for eight seconds is no hung engine; a batch that could be cut gets no more."""
    run = Machine(fixed_seconds=0.0, tokens_per_second=1000)
    run.admit(lengths, Priority.INTERACTIVE)
    assert run.pace.allowance_seconds(run.queue.take(run.pace.budgets())) == allowed
