"""Throughput over latency as concurrency grows: in text for the terminal, and as a PNG where matplotlib is installed.

    python -m bench.chart var/bench/REPORT.json chart.png

draws the PNG of a report that was written before, with any Python that has matplotlib (the extra ``bench``).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_ROWS, _COLUMNS = 18, 72
_MARKS = "●○■□▲△◆◇★☆"


@dataclass(frozen=True, slots=True)
class Point:
    """One concurrency of one side.

    Attributes:
        concurrency: requests in flight.
        rate: texts per second.
        p50_ms: latency that half of the requests stayed below.
        p95_ms: the same for 95 of 100.
    """

    concurrency: int
    rate: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True)
class Curve:
    """All concurrencies of one side, in growing order."""

    name: str
    points: tuple[Point, ...]

    @property
    def label(self) -> str:
        """Its name with its best throughput."""
        return f"{self.name}: up to {max(point.rate for point in self.points):,.0f} texts/s"

    def document(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return {"name": self.name, "points": [asdict(point) for point in self.points]}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Curve:
        """What ``document`` wrote."""
        return cls(document["name"], tuple(Point(**point) for point in document["points"]))


def text_chart(curves: Sequence[Curve]) -> str:
    """The curves in a frame of characters: median latency to the right (each tick ten times the last), texts/s up.

    Where two points fall into one cell, the later curve's is seen.
    """
    points = [point for curve in curves for point in curve.points]
    if not points:
        return ""
    highest = max(point.rate for point in points)
    low = math.floor(math.log10(min(point.p50_ms for point in points)))
    high = max(low + 1, math.ceil(math.log10(max(point.p50_ms for point in points))))
    cells = [[" "] * _COLUMNS for _ in range(_ROWS)]
    for curve, mark in zip(curves, _marks(len(curves)), strict=True):
        for point in curve.points:
            column = round((math.log10(point.p50_ms) - low) / (high - low) * (_COLUMNS - 1))
            cells[_ROWS - 1 - round(point.rate / highest * (_ROWS - 1))][column] = mark
    scale = [f"{highest:,.0f}", *[""] * (_ROWS - 2), "0"]
    width = max(map(len, scale))
    lines = ["Texts per second over median latency, one text a request, concurrency growing along each curve"]
    lines += [f"  {label.rjust(width)} ┤{''.join(line)}".rstrip() for label, line in zip(scale, cells, strict=True)]
    ticks = [" "] * (_COLUMNS + 8)
    for power in range(low, high + 1):
        at = round((power - low) / (high - low) * (_COLUMNS - 1))
        label = f"{10.0**power:g} ms"
        ticks[at : at + len(label)] = label
    lines.append(f"  {' ' * width} └{'─' * _COLUMNS}")
    lines.append(f"  {' ' * width}  {''.join(ticks)}".rstrip())
    lines += [f"  {mark} {curve.label}" for curve, mark in zip(curves, _marks(len(curves)), strict=True)]
    return "\n".join(lines)


def _marks(count: int) -> list[str]:
    return [_MARKS[number % len(_MARKS)] for number in range(count)]


def draw(curves: Sequence[Curve], path: Path, *, title: str) -> None:
    """Write the curves as a PNG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        axes.plot(
            [point.p50_ms for point in curve.points], [point.rate for point in curve.points], marker="o", markersize=4,
            # What is compared stands out from what it is compared with.
            linewidth=2.2 if curve.name.startswith("mesh") else 1.2, label=curve.label,
        )  # fmt: skip
        last = curve.points[-1]
        axes.annotate(f"{last.concurrency}", (last.p50_ms, last.rate), textcoords="offset points", xytext=(5, 3))
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("median latency in ms (one text a request; the number is the last concurrency)")
    axes.set_ylabel("texts per second")
    axes.set_title(title, fontsize=10)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def title_of(machine: Mapping[str, Any]) -> str:
    """Where the curves were measured."""
    return f"{machine['cpu']}, {machine['cores']} cores, commit {machine['commit'] or 'unknown'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw a report's PNG. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.chart", description="Draw the chart of a report.")
    parser.add_argument("report", type=Path, help="what the benchmark wrote")
    parser.add_argument("png", type=Path, help="where the picture goes")
    options = parser.parse_args(arguments)
    report = json.loads(options.report.read_text(encoding="utf-8"))
    curves = [Curve.read(each) for each in report.get("curves", ())]
    if not curves:
        print(f"{options.report} has no curves; measure them with ./scripts/bench.sh curve", file=sys.stderr)
        return 1
    try:
        draw(curves, options.png, title=title_of(report["machine"]))
    except ModuleNotFoundError:
        print("matplotlib is not installed here: pip install -e '.[bench]'", file=sys.stderr)
        return 1
    print(options.png)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
