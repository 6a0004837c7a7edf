"""What the person at the terminal sees: one live line per step, and tables."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

_CLEAR = "\r\x1b[K"
_PLAIN_REMINDER_SECONDS = 30.0


class _Output:
    """A stream that outlives its reader: what ``| head`` no longer reads must not stop a start half-way."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream
        self.live = stream.isatty()

    def write(self, text: str) -> None:
        """Write at once."""
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            self._stream = None
            # The interpreter flushes standard output once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def line(self, text: str) -> str:
        """``text`` cut to the terminal's width, so that it can be overwritten."""
        return text[: shutil.get_terminal_size().columns - 1]


class Console:
    """Prints steps. On a terminal a running step is one live line; elsewhere a plain line at its start and its end."""

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self._output = _Output(stream)

    @property
    def live(self) -> bool:
        """Whether lines can be overwritten: the output is a terminal."""
        return self._output.live

    def say(self, text: str = "") -> None:
        """Print a line."""
        self._output.write(f"{text}\n")

    @contextmanager
    def step(self, label: str) -> Iterator[Step]:
        """Show ``label`` as running until the block ends, then what it took; an exception ends it as stopped."""
        step = Step(label, self._output)
        try:
            yield step
        except BaseException:
            step.finish("stopped")
            raise
        step.finish(step.outcome)

    def redraw(self, lines: Sequence[str], previous: int) -> int:
        """Replace the ``previous`` lines above the cursor by ``lines``. Returns how many there are now."""
        up = f"\x1b[{previous}A" if previous else ""
        self._output.write(up + "".join(f"{_CLEAR}{self._output.line(line)}\n" for line in lines))
        return len(lines)


class Step:
    """A running step. Call `tick` often; it decides what is worth writing."""

    def __init__(self, label: str, output: _Output) -> None:
        self.outcome = "done"
        self._label = label
        self._output = output
        self._began = time.monotonic()
        self._reminded = self._began
        if not output.live:
            output.write(f"  {label} …\n")

    def tick(self, detail: str = "") -> None:
        """Show that the step is alive, with what it is at."""
        now = time.monotonic()
        elapsed = now - self._began
        if self._output.live:
            line = f"  {self._label} … {elapsed:.0f} s" + (f"  {detail}" if detail else "")
            self._output.write(_CLEAR + self._output.line(line))
        elif now - self._reminded >= _PLAIN_REMINDER_SECONDS:
            self._reminded = now
            self._output.write(f"  {self._label} … {elapsed:.0f} s\n")

    def finish(self, outcome: str) -> None:
        """End the step's line."""
        elapsed = time.monotonic() - self._began
        self._output.write(f"{_CLEAR if self._output.live else ''}  {self._label}: {outcome} ({elapsed:.1f} s)\n")


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns are as wide as their widest cell."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
