"""The progress bar: share of the input, texts a second, time left."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, TextIO

from mesh.bulk.failures import Refused
from mesh.bulk.parts import Done

_TERMINAL_SECONDS = 0.2
_LOG_SECONDS = 30.0
"""Between two lines where the output is no terminal."""


class ProgressBar:
    """A bar on the error stream. Use it as a context manager.

    Raises:
        Refused: tqdm is not installed.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise Refused(
                "The progress bar needs tqdm, which is not installed here: pip install 'torch-isolation-mesh[bulk]'"
            ) from error
        self._stream = stream or sys.stderr
        self._tqdm: Any = tqdm
        self._bar: Any = None
        self._first = Done()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self, done: Done, total_bytes: int) -> None:
        """See Progress. Bytes tell the share: how many texts are left is known only once they are read."""
        self._first = done
        self._bar = self._tqdm(
            total=total_bytes,
            initial=done.place.offset,
            unit="B",
            unit_scale=True,
            file=self._stream,
            mininterval=_TERMINAL_SECONDS if self._stream.isatty() else _LOG_SECONDS,
            dynamic_ncols=True,
            smoothing=0.1,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}B of {total_fmt}B{postfix} [{elapsed}, {remaining} left]",
        )
        self.advance(done)

    def advance(self, done: Done) -> None:
        """See Progress."""
        bar = self._bar
        bar.set_postfix_str(self._said(done), refresh=False)
        bar.update(done.place.offset - bar.n)

    def tell(self, line: str) -> None:
        """See Progress. The bar stays below."""
        self._tqdm.write(line, file=self._stream)

    def _said(self, done: Done) -> str:
        texts, size = done.rows - self._first.rows, done.place.offset - self._first.place.offset
        rate = self._bar.format_dict["rate"] or size / max(1e-9, self._bar.format_dict["elapsed"])
        return f"{done.rows:,} texts, {rate * texts / size if size else 0:,.0f} texts/s"
