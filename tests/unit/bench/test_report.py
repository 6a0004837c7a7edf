"""The table, the picture and the JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bench.__main__ import write
from bench.machine import busy_warning, cores
from bench.report import Goal, Report, Row, bar, number, picture, table
from bench.run import generator_notes

FAST = Row(
    part="embedding", what="HTTP, short", unit="texts/s", mesh=900, baseline=300, against="in process",
    spread=(2.5, 3.25), goal=Goal(at_least=3.0), details={"p50_ms": 12.5, "generator_cores": 0.25},
)  # fmt: skip
HEAVY = Row(
    part="gateway", what="memory", unit="MB", mesh=130, baseline=520, against="API with torch",
    smaller_is_better=True, goal=Goal(at_most=120, of_value=True),
)  # fmt: skip
ALONE = Row(part="rerank", what="pairs in order", unit="", mesh=0.9995)


def test_a_row_is_judged_by_its_ratio_or_by_its_own_figure() -> None:
    """A ratio's target looks at the baseline, a figure's target does not, and without a target there is no verdict."""
    assert (FAST.ratio, FAST.met) == (3.0, True)
    assert (HEAVY.ratio, HEAVY.met) == (0.25, False)
    assert (ALONE.ratio, ALONE.met) == (None, None)


def test_a_figure_that_is_missing_meets_no_target() -> None:
    """What was not measured does not pass."""
    goals = (Goal(at_least=1.0, of_value=True), Goal(at_most=1.0, of_value=True), Goal(at_least=1.0))
    assert [Row(part="llm", what="x", unit="s", mesh=math.nan, goal=goal).met for goal in goals] == [False] * 3


def test_advantage_turns_round_what_should_be_small() -> None:
    """A quarter of the memory is four times better."""
    assert (FAST.advantage, HEAVY.advantage, ALONE.advantage) == (3.0, 4.0, None)


def test_the_table_has_a_line_for_each_row_below_its_part() -> None:
    """Parts head their rows, and each row tells figure, baseline, ratio, spread, target and verdict."""
    lines = table([FAST, HEAVY, ALONE]).splitlines()
    assert [line.strip() for line in lines if not line.startswith("  ")] == ["embedding", "gateway", "rerank"]
    for word in ("900 texts/s", "300 texts/s (in process)", "3.00×", "2.50-3.25", "≥3×", "yes"):
        assert word in lines[2]
    for word in ("130 MB", "0.250×", "≤120 MB", "NO"):
        assert word in lines[4]
    assert "0.99950" in lines[6]


def test_columns_stand_below_each_other() -> None:
    """The figures of all rows begin in one column."""
    lines = table([FAST, HEAVY]).splitlines()
    assert lines[0].index("MESH") == lines[2].index("900") == lines[4].index("130")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(12345.6, "12,346"), (99.94, "99.9"), (3.14159, "3.14"), (0.9, "0.900"), (0.99987, "0.99987"), (math.nan, "?")],
)
def test_numbers_show_the_digits_that_matter(value: float, shown: str) -> None:
    """Large ones are grouped, and a cosine near 1 keeps what tells it from 1."""
    assert number(value) == shown


def test_bars_keep_their_width_and_mark_the_baseline() -> None:
    """A bar is as long as its value, at most the scale, and shows where the baseline lies while it is shorter."""
    assert bar(0.5).rstrip() == "████    │"
    assert bar(2.0).rstrip() == "█" * 16
    assert bar(100.0) == "█" * 39 + "▶"
    assert {len(bar(value)) for value in (0.0, 0.33, 1.0, 4.99, 5.0, 7.0)} == {40}


def test_the_picture_leaves_out_what_has_no_baseline() -> None:
    """Only ratios are drawn, and without any there is no picture."""
    drawn = picture([FAST, ALONE])
    assert "HTTP, short" in drawn
    assert "pairs" not in drawn
    assert picture([ALONE]) == ""


def test_the_json_holds_what_the_table_says(tmp_path: Path) -> None:
    """Programs find figures, ratios, targets and verdicts under stable names, and never a NaN."""
    lost = Row(part="llm", what="first token", unit="ms", mesh=math.nan, details={"p99_ms": math.nan})
    report = Report(
        started="2026-01-01T00:00:00+00:00", machine={"cores": 2}, settings={"rounds": 5},
        rows=(FAST, lost), skipped={"rerank": "it does not serve"}, notes=("a note",),
    )  # fmt: skip
    path = tmp_path / "deep" / "report.json"
    write(report, path)
    read = json.loads(path.read_text())
    assert set(read) == {"schema", "started", "machine", "settings", "rows", "skipped", "notes", "curves"}
    assert read["rows"][0] == {
        "part": "embedding", "what": "HTTP, short", "unit": "texts/s", "mesh": 900, "baseline": 300,
        "against": "in process", "ratio": 3.0, "ratio_spread": [2.5, 3.25], "smaller_is_better": False,
        "target": {"of": "ratio", "at_least": 3.0, "at_most": None}, "met": True,
        "details": {"p50_ms": 12.5, "generator_cores": 0.25},
    }  # fmt: skip
    assert read["rows"][1]["mesh"] is None
    assert read["rows"][1]["details"] == {"p99_ms": None}
    assert "rerank was not measured: it does not serve" in report.text()


def test_a_busy_machine_and_a_busy_generator_are_told() -> None:
    """Whoever reads the figures learns what may have spoilt them, and nothing when nothing did."""
    assert busy_warning([0.0, 0.05 * cores()]) == ""
    assert "other work" in busy_warning([0.0, 0.9 * cores()])
    assert generator_notes([ALONE]) == []
    assert generator_notes([FAST]) == ["The load generator kept at most 0.25 of a core busy (embedding: HTTP, short)."]
    hot = Row(part="gateway", what="requests", unit="/s", mesh=1, details={"generator_cores": 0.95})
    assert any("near its limit" in note for note in generator_notes([hot]))
