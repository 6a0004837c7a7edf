"""The result: rows with their targets, as a table, as a picture of bars, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.chart import Curve, text_chart

SCHEMA = 1
"""Raised when a key of the JSON changes its meaning or goes away; new keys do not count."""

_BAR_CELLS = 40
_BAR_LONGEST = 5.0
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a row has to reach: a bound on its ratio, or, with ``of_value``, on its own figure."""

    at_least: float | None = None
    at_most: float | None = None
    of_value: bool = False

    def met_by(self, figure: float) -> bool:
        """Whether the figure keeps the bound. NaN never does."""
        if self.at_least is not None:
            return figure >= self.at_least
        return self.at_most is not None and figure <= self.at_most


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of the mesh beside its baseline's.

    Attributes:
        part: one of ``bench.options.PARTS``.
        what: what was measured and how.
        unit: of ``mesh`` and ``baseline``.
        mesh: the mesh's figure: the median over the rounds.
        baseline: the baseline's; None where there is nothing to compare with.
        against: what the baseline is.
        smaller_is_better: for seconds and bytes.
        spread: lowest and highest ratio of a single round.
        goal: None where there is no target yet.
        details: further figures, by name and unit, for the JSON.
    """

    part: str
    what: str
    unit: str
    mesh: float
    baseline: float | None = None
    against: str = ""
    smaller_is_better: bool = False
    spread: tuple[float, float] | None = None
    goal: Goal | None = None
    details: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """The mesh's figure over the baseline's."""
        return self.mesh / self.baseline if self.baseline else None

    @property
    def advantage(self) -> float | None:
        """How many times better than the baseline; below 1 where it is worse."""
        if self.ratio is None:
            return None
        return 1 / self.ratio if self.smaller_is_better else self.ratio

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.goal is None:
            return None
        figure = self.mesh if self.goal.of_value else self.ratio
        return figure is not None and self.goal.met_by(figure)

    def document(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        goal = self.goal
        return {
            "part": self.part,
            "what": self.what,
            "unit": self.unit,
            "mesh": _finite(self.mesh),
            "baseline": _finite(self.baseline),
            "against": self.against,
            "ratio": _finite(self.ratio),
            "ratio_spread": list(self.spread) if self.spread else None,
            "smaller_is_better": self.smaller_is_better,
            "target": None
            if goal is None
            else {"of": "value" if goal.of_value else "ratio", "at_least": goal.at_least, "at_most": goal.at_most},
            "met": self.met,
            "details": {
                name: _finite(value) if isinstance(value, float) else value for name, value in self.details.items()
            },
        }


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run found out.

    Attributes:
        started: when it began, ISO 8601 with its zone.
        machine: facts about the machine and the versions.
        settings: how long and how often was measured.
        rows: the figures.
        skipped: parts that were not measured, each with the reason.
        notes: what a reader of the figures should know.
        curves: throughput over latency.
        drawings: further pictures in text.
    """

    started: str
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: tuple[Row, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    curves: tuple[Curve, ...] = ()
    drawings: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "schema": SCHEMA,
            "started": self.started,
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "rows": [row.document() for row in self.rows],
            "skipped": dict(self.skipped),
            "notes": list(self.notes),
            "curves": [curve.document() for curve in self.curves],
        }

    def text(self) -> str:
        """As a person reads it."""
        parts = ["\n".join(f"{name}: {value}" for name, value in self.machine.items()), table(self.rows)]
        parts.extend(filter(None, [picture(self.rows), text_chart(self.curves), *self.drawings]))
        remarks = [*(f"{part} was not measured: {reason}" for part, reason in self.skipped.items()), *self.notes]
        if remarks:
            parts.append("\n".join(f"- {remark}" for remark in remarks))
        return "\n\n".join(parts)


def table(rows: Sequence[Row]) -> str:
    """Rows in columns: what, mesh, baseline, ratio with its spread, target, whether it is met."""
    head = ["WHAT", "MESH", "BASELINE", "RATIO", "(ROUNDS)", "TARGET", "MET"]
    lines: list[list[str]] = [head]
    lines.extend(_cells(row) for row in rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    shown = []
    part = ""
    for row, line in zip([None, *rows], lines, strict=True):
        if row is not None and row.part != part:
            part = row.part
            shown.append(part)
        first, *others = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        shown.append(f"  {first}  {'  '.join(others)}".rstrip())
    return "\n".join(shown)


def _cells(row: Row) -> list[str]:
    spread = f"{row.spread[0]:.2f}-{row.spread[1]:.2f}" if row.spread else ""
    met = {True: "yes", False: "NO", None: ""}[row.met]
    baseline = "" if row.baseline is None else f"{number(row.baseline)} {row.unit} ({row.against})"
    ratio = "" if row.ratio is None else f"{number(row.ratio)}×"
    return [row.what, f"{number(row.mesh)} {row.unit}".rstrip(), baseline, ratio, spread, _goal_text(row), met]


def _goal_text(row: Row) -> str:
    if row.goal is None:
        return ""
    bound = row.goal.at_least if row.goal.at_least is not None else row.goal.at_most
    sign = "≥" if row.goal.at_least is not None else "≤"
    return f"{sign}{bound:g}{f' {row.unit}'.rstrip() if row.goal.of_value else '×'}"


def picture(rows: Sequence[Row]) -> str:
    """A bar for each row that has a baseline: how many times better than it. Empty where no row has one.

    ``│`` is the baseline, ``▶`` a bar that is longer than the scale.
    """
    drawn = [row for row in rows if row.advantage is not None]
    if not drawn:
        return ""
    labels = [f"{row.part}: {row.what}" for row in drawn]
    width = max(len(label) for label in labels)
    lines = [f"How many times better than the baseline (│ = 1, the baseline itself; scale to {_BAR_LONGEST:g})"]
    for row, label in zip(drawn, labels, strict=True):
        advantage = row.advantage or 0.0
        lines.append(f"  {label.ljust(width)}  {bar(advantage)} {number(advantage)}")
    return "\n".join(lines)


def bar(value: float) -> str:
    """``value`` as a bar of fixed width with a mark at 1."""
    eighths = round(min(value, _BAR_LONGEST) / _BAR_LONGEST * _BAR_CELLS * 8)
    full, rest = divmod(eighths, 8)
    cells = list(("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(_BAR_CELLS))
    mark = round(_BAR_CELLS / _BAR_LONGEST)
    if cells[mark] == " ":
        cells[mark] = "│"
    if value > _BAR_LONGEST:
        cells[-1] = "▶"
    return "".join(cells)


def number(value: float) -> str:
    """Three digits that matter; a figure close to 1 with as many as tell it from 1."""
    if not math.isfinite(value):
        return "?"
    size = abs(value)
    if 0.99 <= size < 1:
        return f"{value:.5f}"
    if size >= 100:
        return f"{value:,.0f}"
    digits = 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{digits}f}"


def _finite(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return value if value is not None and math.isfinite(value) else None
