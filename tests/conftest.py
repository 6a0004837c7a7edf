"""What tests measure is printed at the end, and kept where a file is named for it; and what holds for all of them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from ops.local.console import render_table
from tests.chaos.bars import Measured

REPORT = "MESH_CHAOS_REPORT"
"""Names a file that the figures are written to, as JSON."""

_FIGURES = pytest.StashKey[list[dict[str, object]]]()


def pytest_configure() -> None:
    """Hear Ctrl-C again where a shell had it ignored, as it has for what it starts in the background.

    The processes that tests start and interrupt would inherit it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Records a figure: what it is, its value, its unit."""
    figures = request.config.stash.setdefault(_FIGURES, [])
    test = request.node.name

    def record(name: str, value: float, unit: str) -> None:
        figures.append({"test": test, "name": name, "value": value, "unit": unit})

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print every figure; write them where the environment says."""
    figures = config.stash.get(_FIGURES, [])
    if not figures:
        return
    rows = [[str(each["name"]), f"{each['value']:.4g}", str(each["unit"])] for each in figures]
    terminalreporter.section("measured")
    for line in render_table(["WHAT", "VALUE", "UNIT"], rows):
        terminalreporter.write_line(line)
    if path := os.environ.get(REPORT):
        Path(path).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
