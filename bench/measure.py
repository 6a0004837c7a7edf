"""Rounds of work, and what is made of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Round:
    """One side's work in one round.

    Attributes:
        units: how much was done: requests, texts, tokens.
        seconds: from the first request's start to the last answer's end.
        latencies: seconds of each request; empty where requests are not told apart.
        generator_cpu_seconds: CPU time that the load generator took for itself.
        server_cpu_seconds: CPU time of the process that answered; None where it was not watched.
    """

    units: float
    seconds: float
    latencies: tuple[float, ...] = ()
    generator_cpu_seconds: float = 0.0
    server_cpu_seconds: float | None = None

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.units / self.seconds


@dataclass(frozen=True, slots=True)
class Series:
    """All rounds of one side."""

    rounds: tuple[Round, ...]

    @property
    def rate(self) -> float:
        """The median round's units per second."""
        return statistics.median(round_.rate for round_ in self.rounds)

    def latency(self, share: float) -> float:
        """The latency in seconds that ``share`` of all requests stayed below; NaN where none was measured."""
        return quantile([latency for round_ in self.rounds for latency in round_.latencies], share)

    @property
    def generator_share(self) -> float:
        """How much of one core the load generator kept busy."""
        return sum(round_.generator_cpu_seconds for round_ in self.rounds) / sum(
            round_.seconds for round_ in self.rounds
        )

    @property
    def generator_seconds_per_request(self) -> float:
        """CPU time that the load generator took for one request."""
        requests = sum(len(round_.latencies) for round_ in self.rounds)
        return sum(round_.generator_cpu_seconds for round_ in self.rounds) / requests if requests else math.nan

    @property
    def server_seconds_per_unit(self) -> float:
        """The median round's CPU time of the answering process for one unit; NaN where it was not watched."""
        costs = [
            round_.server_cpu_seconds / round_.units for round_ in self.rounds if round_.server_cpu_seconds is not None
        ]
        return statistics.median(costs) if costs else math.nan


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest-rank quantile; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1 if share > 0 else 0)]


def paired_spread(mine: Series, theirs: Series) -> tuple[float, float]:
    """The lowest and highest ratio of two rates that were measured in the same round: how far to trust the median."""
    ratios = [a.rate / b.rate for a, b in zip(mine.rounds, theirs.rounds, strict=True)]
    return min(ratios), max(ratios)


Side = Callable[[], Awaitable[Round]]
Tell = Callable[[str], None]


async def interleave(sides: Mapping[str, Side], *, rounds: int, unit: str, tell: Tell) -> dict[str, Series]:
    """Run every side once a round, one after the other, and tell of each round.

    The order turns by one each round, so that no side always runs on a machine that another has just warmed.
    """
    names = list(sides)
    measured: dict[str, list[Round]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            measured[name].append(await sides[name]())
        rates = " · ".join(f"{name} {measured[name][-1].rate:,.0f}" for name in names)
        tell(f"round {number + 1} of {rounds}: {rates} {unit}")
    return {name: Series(tuple(done)) for name, done in measured.items()}
