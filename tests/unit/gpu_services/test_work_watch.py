"""A child that works on a long page is left alone, and one that hangs is found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpu_services.chunking.work_watch import STUCK_SECONDS, WorkWatch, cpu_seconds
from mesh.testing import FakeClock


def verdicts(used: list[float | None]) -> list[bool]:
    """What is said second by second."""
    clock = FakeClock()
    watch = WorkWatch(clock)
    said = []
    for value in used:
        clock.advance(1.0)
        said.append(watch.stuck(value))
    return said


def test_who_computes_is_not_stuck() -> None:
    """However long a page takes."""
    assert not any(verdicts([0.01 * second for second in range(100)]))


def test_who_does_nothing_is_stuck_after_a_while() -> None:
    """A stopped or blocked process uses no time at all."""
    said = verdicts([3.0] * 10)
    assert said.index(True) == STUCK_SECONDS


def test_where_the_system_says_nothing_nobody_is_stuck() -> None:
    """The limit on time is then the only one."""
    assert not any(verdicts([None] * 100))


def test_the_time_is_the_processs_own() -> None:
    """Computing adds to it; a process that is not there has none."""
    before = cpu_seconds(os.getpid())
    if before is None:
        pytest.skip("no /proc on this system")
    while (now := cpu_seconds(os.getpid())) == before:
        sum(range(100_000))
    assert now is not None
    assert now > before
    assert cpu_seconds(2**22 + 1) is None


def test_a_name_with_brackets_moves_no_column(tmp_path: Path) -> None:
    """A process may call itself whatever it likes."""
    (tmp_path / "7").mkdir()
    columns = "R 1 7 7 0 -1 0 0 0 0 0 200 100 0 0"
    (tmp_path / "7" / "stat").write_text(f"7 (a) b) 9 9 (c) {columns}\n")
    assert cpu_seconds(7, tmp_path) == 300 / os.sysconf("SC_CLK_TCK")
