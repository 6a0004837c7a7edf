"""What a deadline promises."""

from __future__ import annotations

import pytest

from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded
from mesh.testing import FakeClock


def test_it_only_shrinks_and_ends_at_zero() -> None:
    """The time left falls with the clock, and never below 0."""
    clock = FakeClock()
    deadline = Deadline.after(2.0, clock)
    assert deadline.remaining() == 2.0
    clock.advance(1.5)
    assert deadline.remaining() == 0.5
    assert not deadline.expired
    clock.advance(1.0)
    assert deadline.remaining() == 0.0
    assert deadline.expired


def test_no_work_starts_that_cannot_finish() -> None:
    """``require`` refuses what needs more time than is left."""
    deadline = Deadline.after(2.0, FakeClock())
    deadline.require(1.9)
    with pytest.raises(DeadlineExceeded):
        deadline.require(2.0)
