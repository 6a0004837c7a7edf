"""What the gateway weighs: import to ready, memory when idle, size on disk, beside an API process that holds torch."""

from __future__ import annotations

import asyncio
import math
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.gateway import gateway_program
from bench.measure import Tell
from bench.options import Options
from bench.processes import Program, disk_bytes, free_port, running
from bench.report import Goal, Row

_AGAINST = "API with torch"
_SETTLE_SECONDS = 1.0
_STARTS, _QUICK_STARTS = 5, 2


@dataclass(frozen=True, slots=True)
class _Start:
    """One start: seconds until ready, and megabytes held a moment later."""

    seconds: float
    megabytes: float


async def measure(options: Options, gateway_python: Path, model: Path | None, tell: Tell) -> list[Row]:
    """The rows of the footprint. Starts its own processes; files are warm, since the first start of each is left out.

    Args:
        options: how often.
        gateway_python: the gateway environment's interpreter.
        model: for the API process with torch; None leaves that baseline out.
        tell: takes lines of progress.
    """
    starts = _QUICK_STARTS if options.quick else _STARTS
    gateway, monolith = [], []
    for number in range(starts + 1):
        gateway.append(await _start(gateway_program(gateway_python)))
        # One warm start of the heavy one is enough to see the difference, and takes as long as many of the light one.
        if model is not None and number < 2:
            monolith.append(await _start(_monolith_program(model)))
        tell(f"gateway start {number} of {starts}: ready after {gateway[-1].seconds:.2f} s")
    sizes = _environment_of(gateway_python), _environment_of(Path(sys.executable))
    baseline = monolith[1:]

    def row(what: str, unit: str, at_most: float, figure: Callable[[_Start], float]) -> Row:
        return Row(
            part="gateway", what=what, unit=unit, mesh=statistics.median(figure(start) for start in gateway[1:]),
            baseline=statistics.median(figure(start) for start in baseline) if baseline else None, against=_AGAINST,
            smaller_is_better=True, goal=Goal(at_most=at_most, of_value=True),
        )  # fmt: skip

    return [
        row("import to ready", "s", 1, lambda start: start.seconds),
        row("memory when idle", "MB", 120, lambda start: start.megabytes),
        Row(
            part="gateway", what="installed size of its environment", unit="MB", mesh=disk_bytes(sizes[0]) / 1e6,
            baseline=disk_bytes(sizes[1]) / 1e6, against=_AGAINST, smaller_is_better=True,
            goal=Goal(at_most=150, of_value=True),
        ),
    ]  # fmt: skip


async def _start(program: Program) -> _Start:
    async with running(program) as process:
        await asyncio.sleep(_SETTLE_SECONDS)
        return _Start(process.ready_seconds, (process.rss_bytes() or math.nan) / 1e6)


def _monolith_program(model: Path) -> Program:
    port = free_port()
    # One model and no configuration: the least that such a process can be.
    what = ["--only", "embedding", "--model", str(model), "--config", os.devnull]
    command = [sys.executable, "-m", "previous", "--port", str(port), *what]
    return Program(name="The API process with torch", command=command, port=port, ready_path="/health/ready")


def _environment_of(python: Path) -> Path:
    return python.parent.parent
