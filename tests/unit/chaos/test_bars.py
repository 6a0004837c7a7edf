"""Bars show every figure of a run, and every one that missed."""

from __future__ import annotations

import pytest

from tests.chaos.bars import Bars


def bars() -> tuple[Bars, list[tuple[str, float, str]]]:
    """Bars, and where their figures go."""
    told: list[tuple[str, float, str]] = []
    return Bars("load", lambda name, value, unit: told.append((name, value, unit))), told


def test_figures_that_reach_their_bars_pass() -> None:
    """A bar itself is good enough, on either side."""
    judged, told = bars()
    judged.at_most("p99", 50.0, "ms", promise=50)
    judged.at_least("goodput", 0.95, "", promise=0.95)
    judged.hold()
    assert told == [("load: p99", 50.0, "ms"), ("load: goodput", 0.95, "")]


def test_all_that_missed_is_named_at_the_end() -> None:
    """The first miss hides no later one, and a figure that is no number misses every bar."""
    judged, told = bars()
    judged.at_most("p99", 51.0, "ms", promise=50)
    judged.at_least("goodput", 0.5, "", promise=0.95)
    judged.at_most("health", float("nan"), "ms", promise=100)
    assert len(told) == 3
    with pytest.raises(AssertionError, match=r"load; p99: 51 ms.*goodput: 0\.5.*health: nan"):
        judged.hold()
