"""What is told of a worker's calls."""

from __future__ import annotations

import logging

import pytest

from mesh.errors import CallerRefused, InvalidRequest, MeshError, Overloaded, Unavailable
from mesh.serving.journal import REFUSALS_PER_SECOND, CallJournal, MethodSeries
from mesh.testing import FakeClock


def lines_of(caplog: pytest.LogCaptureFixture) -> list[tuple[str, object]]:
    """Message and number of calls of every line."""
    return [(record.getMessage(), getattr(record, "fields", {}).get("calls")) for record in caplog.records]


@pytest.mark.parametrize("refusal", [Overloaded("busy"), Unavailable("down"), CallerRefused("no")])
def test_refusals_are_logged_at_a_bounded_rate_and_counted(
    caplog: pytest.LogCaptureFixture, refusal: MeshError
) -> None:
    """A flood of refusals writes a few lines a second, and one that says how many were left out."""
    clock = FakeClock()
    journal, series = CallJournal(clock), MethodSeries("test.v1.Journal", "Embed")
    with caplog.at_level(logging.INFO):
        for _ in range(1000):
            journal.finished(series, refusal.code, 0.0, refusal)
        assert lines_of(caplog) == [("call", None)] * REFUSALS_PER_SECOND
        clock.advance(1.0)
        journal.finished(series, "ok", 0.0, None)
    left_out = 1000 - REFUSALS_PER_SECOND
    assert lines_of(caplog)[REFUSALS_PER_SECOND:] == [("further calls were refused", left_out), ("call", None)]


def test_every_other_call_has_its_line(caplog: pytest.LogCaptureFixture) -> None:
    """Answers and a caller's own errors are never left out."""
    journal, series = CallJournal(FakeClock()), MethodSeries("test.v1.Journal", "Embed")
    with caplog.at_level(logging.INFO):
        for failure in [None, InvalidRequest("no")] * 100:
            journal.finished(series, "any", 0.0, failure)
    assert len(caplog.records) == 200
