"""A slow engine is left alone, and one that hangs is found, however its callers behave."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_service.cpu_time import group_cpu_seconds
from llm_service.pulse import SILENT_BEATS, Patient, feel_pulse
from llm_service.silence import SilenceWatch
from mesh.errors import MeshError, Unavailable
from mesh.testing import FakeClock

HANG, STALL = 6.0, 120.0


def watched() -> tuple[SilenceWatch, FakeClock]:
    """A watch with its clock."""
    clock = FakeClock()
    return SilenceWatch(hang_seconds=HANG, stall_seconds=STALL, clock=clock), clock


def seconds_until_it_hangs(
    watch: SilenceWatch, clock: FakeClock, cpu: Callable[[int], float | None], most: int = 1000
) -> int | None:
    """Ask once a second."""
    for second in range(most):
        if watch.hangs(cpu(second)) is not None:
            return second
        clock.advance(1.0)
    return None


def test_a_long_prompt_is_no_hang() -> None:
    """An engine that computes may be silent for as long as a request may wait."""
    watch, clock = watched()
    with watch.asked():
        assert seconds_until_it_hangs(watch, clock, float) == STALL


def test_silence_without_computing_is_a_hang() -> None:
    """It costs the engine a little to answer its health route; that is no work."""
    watch, clock = watched()
    with watch.asked():
        assert seconds_until_it_hangs(watch, clock, lambda second: 7.0 + 0.005 * second) == HANG


def test_an_engine_that_owes_nothing_may_be_as_silent_as_it_likes() -> None:
    """Nobody waits for it; the canary sees to it that somebody does."""
    watch, clock = watched()
    assert seconds_until_it_hangs(watch, clock, lambda _: 7.0) is None


def test_whatever_it_writes_begins_the_silence_anew() -> None:
    """Between two tokens it may pause as long as before the first."""
    watch, clock = watched()
    with watch.asked():
        for _ in range(10):
            assert seconds_until_it_hangs(watch, clock, lambda _: 7.0, most=int(HANG)) is None
            watch.heard()
        assert seconds_until_it_hangs(watch, clock, lambda _: 7.0) == HANG


def test_impatient_callers_hide_no_hang() -> None:
    """Where one caller after another leaves before the time is over, the engine still did nothing all the while."""
    watch, clock = watched()
    found = None
    for second in range(30):
        with watch.asked():
            found = found or (second if watch.hangs(7.0) else None)
            clock.advance(1.0)
    assert found == HANG


def test_a_request_behind_an_abandoned_prompt_has_its_own_time() -> None:
    """The engine first finishes what a caller who left had asked for: the next one's time begins after that."""
    watch, clock = watched()
    with watch.asked():
        clock.advance(STALL - 1)
    with watch.asked():
        assert seconds_until_it_hangs(watch, clock, float) == 2 * STALL
    watch.heard()
    with watch.asked():
        assert seconds_until_it_hangs(watch, clock, float) == STALL


def test_another_process_is_judged_anew() -> None:
    """A fresh engine has used less than the one before; that is no sign of a hang."""
    watch, clock = watched()
    with watch.asked():
        assert seconds_until_it_hangs(watch, clock, lambda second: 100.0 - second, most=50) is None


def test_where_the_system_says_nothing_the_time_alone_counts() -> None:
    """Without /proc a hang is found by the longest silence."""
    watch, clock = watched()
    with watch.asked():
        assert seconds_until_it_hangs(watch, clock, lambda _: None) == STALL


class FakePatient:
    """An engine whose pulse is felt, for ``beats`` beats."""

    def __init__(self, beats: int) -> None:
        self.beats = beats
        self.door_is_open = True
        self.writes = False
        self.fault: Exception | None = None
        self.cpu = 0.0
        self.failure: MeshError | None = None
        self.restarts: list[str] = []
        self.clock = FakeClock()
        self.silence = SilenceWatch(hang_seconds=HANG, stall_seconds=STALL, clock=self.clock)

    async def answers(self) -> bool:
        """Whether the door is open; raises ``fault`` once."""
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        return self.door_is_open

    async def cpu_seconds(self) -> float | None:
        """What was used."""
        return self.cpu

    def restart(self, why: str) -> None:
        """Remember it, and be on the way."""
        self.restarts.append(why)
        self.failure = Unavailable("restarting")

    async def sleep(self, seconds: float) -> None:
        """One beat; the last never ends."""
        if self.beats == 0:
            await asyncio.Event().wait()
        self.beats -= 1
        self.clock.advance(seconds)
        if self.writes:
            self.silence.heard()

    async def felt(self) -> list[str]:
        """The restarts after all beats."""
        patient = Patient(
            answers=self.answers, cpu_seconds=self.cpu_seconds, unhealthy=lambda: self.failure, restart=self.restart
        )
        feeling = asyncio.create_task(feel_pulse(patient, self.silence, self.sleep))
        for _ in range(200):
            await asyncio.sleep(0)
        feeling.cancel()
        await asyncio.gather(feeling, return_exceptions=True)
        return self.restarts


async def test_a_closed_door_restarts_the_engine_once() -> None:
    """An engine that answers nothing is ended at the second beat, and left alone while the next one comes."""
    patient = FakePatient(beats=10)
    patient.door_is_open = False
    assert await patient.felt() == ["its process hangs"]
    assert patient.beats == 0
    early = FakePatient(beats=SILENT_BEATS - 1)
    early.door_is_open = False
    assert await early.felt() == []


async def test_who_writes_is_alive() -> None:
    """A door with no time for its health route is left alone as long as pieces come out of it, and no longer."""
    patient = FakePatient(beats=30)
    patient.door_is_open = False
    patient.writes = True
    with patient.silence.asked():
        assert await patient.felt() == []
    patient.beats, patient.writes = 30, False
    assert await patient.felt() == ["its process hangs"]


async def test_a_beat_that_fails_ends_no_watch() -> None:
    """The next beat is felt: nobody else would notice an engine that hangs."""
    patient = FakePatient(beats=10)
    patient.door_is_open = False
    patient.fault = RuntimeError("nobody thought of it")
    assert await patient.felt() == ["its process hangs"]


async def test_an_open_door_with_nobody_behind_it_restarts_the_engine() -> None:
    """Its health route answers and its computing thread hangs: what it owes tells."""
    patient = FakePatient(beats=10)
    with patient.silence.asked():
        (why,) = await patient.felt()
    assert "has not computed" in why


async def test_an_engine_without_requests_keeps_its_pulse() -> None:
    """An open door and nothing owed is health."""
    assert await FakePatient(beats=30).felt() == []


def test_the_time_of_a_group_is_that_of_its_processes(tmp_path: Path) -> None:
    """All members count, others do not, and a name with brackets moves no column."""
    for pid, group, user, system in ((7, 7, 100, 50), (8, 7, 30, 20), (9, 1, 999, 999)):
        (tmp_path / str(pid)).mkdir()
        columns = f"R 1 {group} {group} 0 -1 0 0 0 0 0 {user} {system} 0 0"
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) b) 9 9 (c) {columns}\n")
    (tmp_path / "uptime").write_text("1 1")
    assert group_cpu_seconds(7, tmp_path) == 200 / os.sysconf("SC_CLK_TCK")
    assert group_cpu_seconds(6, tmp_path) is None
    assert group_cpu_seconds(7, tmp_path / "none") is None


def test_the_door_is_no_sign_of_work(tmp_path: Path) -> None:
    """Where the door and what computes are different processes, neither the tether nor its child counts."""
    for pid, parent, ticks in ((7, 1, 100), (8, 7, 100), (9, 8, 40), (10, 9, 2)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (x) R {parent} 7 7 0 -1 0 0 0 0 0 {ticks} 0 0 0\n")
    assert group_cpu_seconds(7, tmp_path, leave_out_door=True) == 42 / os.sysconf("SC_CLK_TCK")


def test_computing_is_seen_by_the_system() -> None:
    """What this process computes, its group has used."""
    before = group_cpu_seconds(os.getpgrp())
    if before is None:
        pytest.skip("no /proc on this system")
    while (now := group_cpu_seconds(os.getpgrp())) is not None and now <= before:
        sum(range(100_000))
    assert now is not None
