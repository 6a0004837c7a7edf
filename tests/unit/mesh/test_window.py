"""What the sliding window remembers, and for how long."""

from __future__ import annotations

import random

import pytest

from mesh.resilience.window import BUCKETS, SlidingWindow
from mesh.testing import FakeClock


def test_outcomes_are_counted_while_they_are_in_the_window_and_forgotten_after_it() -> None:
    """All of the last nine tenths count for certain, and nothing older than the window does."""
    clock = FakeClock()
    window = SlidingWindow(10.0, clock)
    window.record(failed=True, slow=True)
    window.record()
    clock.advance(8.9)
    counts = window.counts()
    assert (counts.calls, counts.failures, counts.slow) == (2, 1, 1)
    assert (counts.failure_rate, counts.slow_rate) == (0.5, 0.5)
    clock.advance(1.2)
    assert window.counts().calls == 0


def test_an_empty_window_has_no_rate() -> None:
    """Nothing divided by nothing is no failure."""
    counts = SlidingWindow(10.0, FakeClock()).counts()
    assert (counts.failure_rate, counts.slow_rate) == (0.0, 0.0)


def test_clearing_forgets_at_once() -> None:
    """And what comes later is counted alone."""
    window = SlidingWindow(10.0, FakeClock())
    window.record(failed=True)
    window.clear()
    window.record()
    assert (window.counts().calls, window.counts().failures) == (1, 0)


def test_the_sums_are_those_of_counting_anew() -> None:
    """However outcomes and pauses follow each other, they equal a list's that is searched each time."""
    clock, rng = FakeClock(), random.Random(5)
    window = SlidingWindow(10.0, clock)
    all_outcomes: list[tuple[int, bool, bool]] = []
    for _ in range(3000):
        clock.advance(rng.choice([0.0, 0.01, 0.3, 0.999, 2.0, 25.0]) * rng.random())
        failed, slow = rng.random() < 0.3, rng.random() < 0.2
        window.record(failed=failed, slow=slow)
        all_outcomes.append((int(clock()), failed, slow))
        recent = [outcome for outcome in all_outcomes if outcome[0] > int(clock()) - BUCKETS]
        counts = window.counts()
        expected = (len(recent), sum(failed for _, failed, _ in recent), sum(slow for _, _, slow in recent))
        assert (counts.calls, counts.failures, counts.slow) == expected


def test_its_memory_does_not_grow() -> None:
    """A hundred thousand outcomes over an hour leave no more than the buckets of one window."""
    clock = FakeClock()
    window = SlidingWindow(10.0, clock)
    for _ in range(100_000):
        clock.advance(0.036)
        window.record()
    assert len(window._buckets) <= BUCKETS


def test_counts_that_were_read_stay_as_they_were() -> None:
    """A reader's copy does not move while it is looked at."""
    window = SlidingWindow(10.0, FakeClock())
    before = window.counts()
    window.record()
    assert before.calls == 0


def test_a_window_without_length_is_refused() -> None:
    """It could hold nothing."""
    with pytest.raises(ValueError, match="length"):
        SlidingWindow(0.0, FakeClock())
