"""``python -m bench [all | PART …]``: measure, print, write."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import uvloop

from bench import chart
from bench.options import Options, parse
from bench.report import Report
from bench.run import NEED_A_MESH, Run
from bench.subject import CannotMeasure, Subject, find
from ops.local.layout import Layout

_DRAW_LATER = "With it (pip install -e '.[bench]'): python -m bench.chart THE.json THE.png"

EXIT_NOT_ALL = 1
EXIT_NO_MESH = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure. Returns the exit code: 0 when every part was measured, whether or not it met its target."""
    options = parse(arguments)
    layout = Layout.from_environment(os.environ)
    try:
        subject = find(options.gateway_url) if NEED_A_MESH & set(options.parts) else None
    except CannotMeasure as error:
        print(error, file=sys.stderr)
        return EXIT_NO_MESH
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report = runner.run(_measure(options, layout, subject))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nInterrupted; nothing was written, and nothing that was started still runs.", file=sys.stderr)
        return EXIT_INTERRUPTED
    path = options.json_path or layout.home / "bench" / f"{datetime.now():%Y-%m-%dT%H-%M-%S}.json"
    write(report, path)
    print(f"{report.text()}\n\nWritten to {path}{_drawn(report, path.with_suffix('.png'))}")
    return EXIT_NOT_ALL if report.skipped else 0


async def _measure(options: Options, layout: Layout, subject: Subject | None) -> Report:
    task = asyncio.current_task()
    assert task is not None
    # The runner turns Ctrl-C into a cancellation; an end that is asked for politely gets the same clean-up.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await Run(options, layout).measure(subject)


def _drawn(report: Report, path: Path) -> str:
    """Draw the report's curves where there are any, and say what came of it."""
    if not report.curves:
        return ""
    try:
        chart.draw(report.curves, path, title=chart.title_of(report.machine))
    except ModuleNotFoundError:
        return f"; there is no PNG, since matplotlib is not installed here. {_DRAW_LATER}"
    return f", the chart to {path}"


def write(report: Report, path: Path) -> None:
    """The report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.document(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
