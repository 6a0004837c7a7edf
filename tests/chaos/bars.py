"""The bars that a measured figure has to reach: the promise on a quiet machine, and what a busy one can still show."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field

FULL = os.environ.get("MESH_CHAOS_FULL", "") == "1"
"""The long run on a quiet machine, against the promises themselves."""

Measured = Callable[[str, float, str], None]


@dataclass(slots=True)
class Bars:
    """Tells every figure, and remembers which missed its bar, so that a run shows all of them and not the first.

    Args:
        subject: stands before each figure's name.
        measured: records a figure.
    """

    subject: str
    measured: Measured
    missed: list[str] = field(default_factory=list)

    def tell(self, name: str, value: float, unit: str) -> None:
        """Record a figure that has no bar."""
        self.measured(f"{self.subject}: {name}", value, unit)

    def at_most(self, name: str, value: float, unit: str, *, promise: float, noisy: float | None = None) -> None:
        """Record a figure that may not be higher.

        Args:
            name: what it is.
            value: the figure.
            unit: its unit; empty for a ratio or a count.
            promise: the bar on a quiet machine.
            noisy: the bar where others use the machine; left out, the promise holds there too.
        """
        self.tell(name, value, unit)
        bar = promise if FULL or noisy is None else noisy
        if math.isnan(value) or value > bar:
            self.missed.append(f"{name}: {value:.4g} {unit}, at most {bar:g} wanted (the promise is {promise:g})")

    def at_least(self, name: str, value: float, unit: str, *, promise: float, noisy: float | None = None) -> None:
        """Record a figure that may not be lower. See `at_most`."""
        self.tell(name, value, unit)
        bar = promise if FULL or noisy is None else noisy
        if math.isnan(value) or value < bar:
            self.missed.append(f"{name}: {value:.4g} {unit}, at least {bar:g} wanted (the promise is {promise:g})")

    def hold(self) -> None:
        """Fail with all that was missed."""
        assert not self.missed, "; ".join([self.subject, *self.missed])
