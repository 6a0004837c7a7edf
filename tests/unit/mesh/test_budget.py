"""What the retry budget allows, and what it keeps from a struggling peer."""

from __future__ import annotations

import threading

import pytest

from mesh.resilience import RetryBudget
from mesh.testing import FakeClock


def calls(budget: RetryBudget, clock: FakeClock, *, count: int, per_second: float, failing: bool) -> int:
    """So many calls at a steady rate; how many retries the failing ones were allowed."""
    retries = 0
    for _ in range(count):
        clock.advance(1 / per_second)
        budget.record_call()
        retries += failing and budget.take()
    return retries


@pytest.mark.parametrize("per_second", [10, 37, 500, 3000])
def test_when_every_call_fails_retries_stay_within_a_tenth_of_the_calls_and_the_floor(per_second: int) -> None:
    """However long it lasts, the peer sees no more than 1.1 times the offered load, and the floor once."""
    clock = FakeClock()
    count = max(5000, 40 * per_second)
    retries = calls(RetryBudget(clock=clock), clock, count=count, per_second=per_second, failing=True)
    assert retries <= 0.1 * count + 10
    assert retries >= 0.08 * count


def test_whatever_the_load_does_the_sum_stays_within_a_tenth_and_the_floor() -> None:
    """Bursts and lulls, none so quiet that the floor counts, save up no more than a tenth of all calls."""
    clock = FakeClock()
    budget = RetryBudget(clock=clock)
    retries = total = 0
    for step in range(60):
        count, per_second = (2000, 1000.0) if step % 3 else (150, 12.0)
        retries += calls(budget, clock, count=count, per_second=per_second, failing=step % 2 == 0)
        total += count
    assert retries <= 0.1 * total + 10


def test_a_hop_that_is_hardly_used_may_retry_its_floor_in_every_window() -> None:
    """One call a second is retried each time: ten in ten seconds are a load for nobody."""
    clock = FakeClock()
    budget = RetryBudget(floor=10, clock=clock)
    assert calls(budget, clock, count=100, per_second=0.9, failing=True) == 100
    clock.advance(60)
    assert [budget.take() for _ in range(12)] == [True] * 10 + [False] * 2


def test_a_dying_replicas_calls_are_all_retried() -> None:
    """After a quiet second at 500 calls/s, the 32 in flight to one of two that is killed are within the budget.

    So are the calls that still go there until it is ejected, at its share of the load.
    """
    clock = FakeClock()
    budget = RetryBudget(clock=clock)
    assert calls(budget, clock, count=500, per_second=500, failing=False) == 0
    assert all(budget.take() for _ in range(32))
    clock.advance(9)
    calls(budget, clock, count=5000, per_second=500, failing=False)
    clock.advance(0.001)
    assert all(budget.take() for _ in range(32))
    assert calls(budget, clock, count=250, per_second=250, failing=True) == 250


def test_a_budget_that_was_used_up_comes_back_with_the_window() -> None:
    """Refused now, allowed again when the old retries are out of sight."""
    clock = FakeClock()
    budget = RetryBudget(floor=3, window_seconds=10.0, clock=clock)
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    clock.advance(8.9)
    assert not budget.take()
    clock.advance(1.2)
    assert budget.take()


def test_a_retry_that_is_refused_is_not_counted() -> None:
    """Asking in vain, however often, costs nothing later."""
    clock = FakeClock()
    budget = RetryBudget(ratio=0.5, floor=0, clock=clock)
    assert not any(budget.take() for _ in range(1000))
    budget.record_call()
    budget.record_call()
    assert budget.take()


def test_no_more_than_the_budget_is_given_to_threads_that_ask_at_once() -> None:
    """Eight threads share one budget of ten."""
    budget = RetryBudget(floor=10, clock=FakeClock())
    barrier = threading.Barrier(8)
    given: list[bool] = []

    def ask() -> None:
        barrier.wait()
        given.extend(budget.take() for _ in range(50))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(given) == 10


@pytest.mark.parametrize("arguments", [{"ratio": -0.1}, {"floor": -1}, {"window_seconds": 0.0}])
def test_nonsense_is_refused(arguments: dict[str, float]) -> None:
    """A budget below nothing, or over no time, is none."""
    with pytest.raises(ValueError):
        RetryBudget(**arguments)  # type: ignore[arg-type]
