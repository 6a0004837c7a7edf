"""Rounds, medians, quantiles, and the order in which sides take turns."""

from __future__ import annotations

import asyncio
import math

import pytest

from bench.load import RequestFailed, closed_loop
from bench.measure import Round, Series, interleave, paired_spread, quantile
from mesh.testing import FakeClock


def series(*rates: float) -> Series:
    """Rounds of one second each."""
    return Series(tuple(Round(rate, 1.0) for rate in rates))


def test_a_series_rate_is_its_median_round() -> None:
    """One slow round does not move the figure."""
    assert series(100, 1, 102).rate == 100


def test_spread_pairs_rounds_of_the_same_turn() -> None:
    """The spread compares what ran next to each other, so a machine that slows down for both does not widen it."""
    assert paired_spread(series(200, 100), series(100, 50)) == (2.0, 2.0)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 5), (0.99, 10), (1.0, 10)])
def test_quantiles_are_values_that_occurred(share: float, expected: float) -> None:
    """Nearest rank: no figure is made up between two measured ones."""
    assert quantile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], share) == expected


def test_the_quantile_of_nothing_is_no_number() -> None:
    """A figure that was not measured does not look like one."""
    assert math.isnan(quantile([], 0.5))


def test_costs_are_those_of_the_rounds_that_were_watched() -> None:
    """CPU time per unit is the median over rounds, and no number where no process was watched."""
    watched = Series(tuple(Round(10, 1.0, server_cpu_seconds=cost) for cost in (1.0, 2.0, 9.0)))
    assert watched.server_seconds_per_unit == pytest.approx(0.2)
    assert math.isnan(series(1, 2).server_seconds_per_unit)


async def test_sides_take_turns_and_never_run_together() -> None:
    """Each side runs once a round, the order turns, and one ends before the next begins."""
    order: list[str] = []
    running = 0

    def side(name: str) -> object:
        async def once() -> Round:
            nonlocal running
            assert running == 0
            running += 1
            order.append(name)
            await asyncio.sleep(0)
            running -= 1
            return Round(len(order), 1.0)

        return once

    told: list[str] = []
    sides = {name: side(name) for name in ("mesh", "baseline")}
    measured = await interleave(sides, rounds=3, unit="texts/s", tell=told.append)  # type: ignore[arg-type]
    assert order == ["mesh", "baseline", "baseline", "mesh", "mesh", "baseline"]
    assert [round_.units for round_ in measured["mesh"].rounds] == [1, 4, 5]
    assert told[0] == "round 1 of 3: mesh 1 · baseline 2 texts/s"


async def test_the_closed_loop_counts_every_answer() -> None:
    """Units of requests that are in flight together are not lost."""
    clock = FakeClock()
    asked: list[int] = []

    async def send(_: int, number: int) -> float:
        asked.append(number)
        await asyncio.sleep(0)
        clock.advance(0.125)
        return 2.0

    done = await closed_loop(send, concurrency=4, seconds=1.0, clock=clock)
    assert done.units == 2.0 * len(asked)
    assert len(done.latencies) == len(asked) == len(set(asked))
    assert len(asked) > 4


async def test_the_closed_loop_waits_for_what_it_began() -> None:
    """No request begins after its time, and a round lasts until the last answer is there."""
    clock = FakeClock()

    async def send(_: int, __: int) -> float:
        clock.advance(0.75)
        return 1.0

    done = await closed_loop(send, concurrency=1, seconds=1.0, clock=clock)
    assert (done.units, done.seconds, done.latencies) == (2.0, 1.5, (0.75, 0.75))


async def test_a_failed_request_ends_the_round() -> None:
    """A benchmark in which requests fail says so instead of measuring the failures."""

    async def send(_: int, number: int) -> float:
        await asyncio.sleep(0)
        if number == 3:
            raise RequestFailed("HTTP 503")
        return 1.0

    with pytest.raises(RequestFailed, match="503"):
        await closed_loop(send, concurrency=2, seconds=1.0, clock=FakeClock())
