"""Curves of throughput over latency: in text, in the report, and as a PNG's data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import chart
from bench.chart import Curve, Point, text_chart

MESH = Curve("mesh over HTTP", (Point(1, 100.0, 1.0, 2.0), Point(32, 1000.0, 10.0, 20.0)))
PEER = Curve("peer", (Point(1, 50.0, 100.0, 200.0),))


def test_a_point_stands_where_its_figures_say() -> None:
    """The fastest point touches the top, the slowest answer the right edge, and each curve has a mark of its own."""
    lines = text_chart([MESH, PEER]).splitlines()
    top = next(line for line in lines if "1,000 ┤" in line)
    frame = top.index("┤") + 1
    assert top[frame:].index("●") == pytest.approx(36, abs=1)
    marked = [line for line in lines if "┤" in line and "○" in line]
    assert len(marked) == 1
    assert marked[0].index("○") == frame + 71
    assert "● mesh over HTTP: up to 1,000 texts/s" in lines[-2]
    assert "○ peer: up to 50 texts/s" in lines[-1]


def test_the_ticks_name_whole_powers_of_ten() -> None:
    """Latencies can be read off the axis."""
    axis = text_chart([MESH, PEER]).splitlines()[-3]
    assert axis.split() == ["1", "ms", "10", "ms", "100", "ms"]


@pytest.mark.parametrize("latency_ms", [0.05, 1.0, 7.0])
def test_a_single_point_is_drawn(latency_ms: float) -> None:
    """One concurrency of one side needs no second one to have a scale."""
    assert text_chart([Curve("x", (Point(1, 10.0, latency_ms, latency_ms),))]).count("●") == 2


def test_without_curves_there_is_no_chart() -> None:
    """A run that measured none shows none."""
    assert text_chart([]) == ""


def test_curves_survive_the_json() -> None:
    """A PNG can be drawn later from what was written."""
    assert Curve.read(json.loads(json.dumps(MESH.document()))) == MESH


def test_a_report_without_curves_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever draws a report of other parts learns which part to measure."""
    report = tmp_path / "report.json"
    report.write_text('{"curves": [], "machine": {}}')
    assert chart.main([str(report), str(tmp_path / "chart.png")]) == 1
    assert "bench.sh curve" in capsys.readouterr().err
