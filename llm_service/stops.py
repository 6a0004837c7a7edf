"""Stop strings for engines that write them out: the text ends before the first one, wherever the pieces are cut."""

from __future__ import annotations

from collections.abc import Sequence


class StopCutter:
    """Passes text on until a stop string begins; holds back only what may still become one.

    >>> cutter = StopCutter(["END"])
    >>> cutter.feed("one E"), cutter.feed("ND two"), cutter.met
    ('one ', '', 'END')
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.met = ""
        """The stop string that was met; empty before."""

    def feed(self, text: str) -> str:
        """What of the text so far is certain to stand before every stop string."""
        if self.met:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.met = min(found)
            self._held = ""
            return text[:at]
        keep = max(map(self._overlap, [text] * len(self._stops), self._stops))
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of ``text`` with which ``stop`` begins."""
        return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
