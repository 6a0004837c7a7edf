"""The batch sizes' promise, with an engine of formulas and a clock of our own: interactive callers wait for little."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

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
        lambda: Machine(fixed_seconds=0.004, tokens_per_second=400_000, batch_tokens=32_768),
    ],
    ids=["cpu", "gpu"],
)


def interactive_p99(run: Machine, *, with_bulk: bool) -> float:
    """The 99th percentile of one minute of interactive requests, of which the engine could do five times as many."""
    rng = random.Random(7)
    arrivals = random.Random(8)
    alone = run.fixed_seconds + 32 / run.tokens_per_second
    due = run.clock() + 0.5
    waiting: list[Ticket[FakeWork, int]] = []
    latencies: list[float] = []
    until = run.clock() + 60
    while run.clock() < until:
        while with_bulk and len(run.queue) < 500:
            run.admit([rng.randint(8, 40) for _ in range(100)], Priority.BULK)
        while due <= run.clock():
            ticket = run.admit([32], Priority.INTERACTIVE)
            ticket.admitted_at = due
            waiting.append(ticket)
            due += arrivals.expovariate(0.2 / alone)
        if run.compute() is None:
            run.clock.advance(max(0.0, due - run.clock()))
        latencies += [run.clock() - ticket.admitted_at for ticket in waiting if not ticket.open_items]
        waiting = [ticket for ticket in waiting if ticket.open_items]
    warm = sorted(latencies[10:])
    assert len(warm) > 500
    return warm[int(len(warm) * 0.99)]


@MACHINES
def test_interactive_latency_under_bulk_load_stays_within_three_times_idle(machine: Callable[[], Machine]) -> None:
    """Beside a bulk job that never ends, the 99th percentile is at most three times that without it."""
    assert interactive_p99(machine(), with_bulk=True) <= 3 * interactive_p99(machine(), with_bulk=False)


@MACHINES
def test_bulk_batches_are_large_again_when_no_interactive_request_comes(machine: Callable[[], Machine]) -> None:
    """Short batches are the price of interactive traffic, paid only while there is some."""
    run = machine()
    full = min(run.batch_tokens, int(LONGEST_BATCH_SECONDS * run.tokens_per_second))
    assert run.pace.budgets().bulk_tokens == full
    run.admit([32], Priority.INTERACTIVE)
    run.compute()
    short = run.pace.budgets().bulk_tokens
    assert short < full / 4
    run.clock.advance(INTERACTIVE_WINDOW_SECONDS)
    budgets = run.pace.budgets()
    assert budgets.bulk_tokens == budgets.tokens
    assert budgets.bulk_tokens > 4 * short


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
    assert last.seconds == pytest.approx(0.04, rel=0.2)


def test_a_slow_engine_gets_batches_of_about_a_second() -> None:
    """Who comes next, a canary among them, never waits for a batch of many seconds."""
    run = Machine(fixed_seconds=0.01, tokens_per_second=300)
    run.admit([20] * 200, Priority.BULK)
    while computed := run.compute():
        assert computed.seconds <= LONGEST_BATCH_SECONDS + 0.1


def test_the_speed_follows_the_engine_within_seconds() -> None:
    """A wrong first measure, or an engine that slows down, corrects the estimated waits soon."""
    run = Machine(fixed_seconds=0.0, tokens_per_second=1000)
    run.pace.tokens_per_second = 1e7
    run.admit([10] * 2000, Priority.BULK)
    started = run.clock()
    while run.clock() - started < 6 and run.compute():
        pass
    assert run.pace.tokens_per_second == pytest.approx(1000, rel=0.2)


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
