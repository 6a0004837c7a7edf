"""A child process's output reaches the log, and nothing of it outlives whoever holds its tether."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import uvloop

from llm_service import tether
from llm_service.process import Command, EngineProcess, describe_exit

# A child that starts a grandchild. Both hold a named pipe open for as long as they live: its end is the end of both.
FAMILY = """
import subprocess, sys, time
alive = open({fifo!r}, "w")
grandchild = "import time; alive = open({fifo!r}, 'w'); print('ready', flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", grandchild])
time.sleep(600)
"""


class Family:
    """The reading end of a named pipe that a family of processes holds open."""

    def __init__(self, directory: Path) -> None:
        self._fifo = directory / "alive"
        os.mkfifo(self._fifo)
        self._reading = os.open(self._fifo, os.O_RDONLY | os.O_NONBLOCK)

    def code(self, before: str = "") -> str:
        """What the child runs."""
        return before + FAMILY.format(fifo=str(self._fifo))

    def is_gone(self) -> bool:
        """Whether all of them end within seconds."""
        readable, _, _ = select.select([self._reading], [], [], 10)
        return bool(readable) and os.read(self._reading, 1) == b""

    def close(self) -> None:
        """Let go of the pipe."""
        os.close(self._reading)


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    """A family that has not started yet."""
    made = Family(tmp_path)
    yield made
    made.close()


class Ready(logging.Handler):
    """Hears when a child writes "ready"."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Look at one log line."""
        if record.getMessage() == "engine: ready":
            self.heard.set()


@pytest.fixture
async def ready() -> AsyncIterator[Ready]:
    """Listens to the engine's log."""
    handler = Ready()
    logger = logging.getLogger("engine")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def command(code: str, quiet: re.Pattern[str] | None = None) -> Command:
    """Run some Python."""
    return Command([sys.executable, "-c", code], os.environ, quiet)


async def test_output_is_logged_line_by_line(caplog: pytest.LogCaptureFixture) -> None:
    """Lines reach the log with a prefix; carriage returns end lines too; quiet lines do not."""
    caplog.set_level("INFO")
    code = "import sys; print('one\\rtwo\\nGET /health\\nthree', end='')"
    process = await EngineProcess.spawn(command(code, re.compile("GET")))
    assert await process.wait() == "ended with exit code 0"
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("engine: ")]
    assert lines == ["engine: one", "engine: two", "engine: three"]
    assert process.last_words == "one | two | three"


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("raise SystemExit(3)", "ended with exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "was killed, perhaps for want of memory"),
        ("import os; os.kill(os.getpid(), 11)", "was ended by SIGSEGV"),
    ],
)
async def test_the_end_is_told_in_words(code: str, how: str) -> None:
    """Exit codes and signals of the engine come through the tether."""
    process = await EngineProcess.spawn(command(code))
    assert how == await process.wait()


async def test_a_command_that_is_not_there() -> None:
    """An engine that cannot be started has an exit code of its own."""
    process = await EngineProcess.spawn(Command(["/no/such/engine"], os.environ))
    assert await process.wait() == describe_exit(127)


def test_a_failed_spawn_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spawn that the system refuses costs no descriptor, however often it is tried."""
    refused: list[OSError] = []  # their tracebacks hold the frames, as a log would: no collector closes the pipe

    async def try_to_spawn(times: int) -> int:
        for _ in range(times):
            try:
                await EngineProcess.spawn(command("pass"))
            except OSError as error:
                refused.append(error)
        for _ in range(5):  # transports are closed in a later turn of the loop
            await asyncio.sleep(0)
        return len(os.listdir("/proc/self/fd"))

    async def open_before_and_after() -> tuple[int, int]:
        return await try_to_spawn(1), await try_to_spawn(5)  # what the loop opens for its first child stays

    monkeypatch.setattr(sys, "executable", "/no/such/python")
    before, after = uvloop.run(open_before_and_after())  # the workers' loop; asyncio's own closes a pipe at its end
    assert (after, len(refused)) == (before, 6)


async def test_stop_is_polite_first(ready: Ready) -> None:
    """An engine that heeds SIGTERM ends by itself."""
    code = """
import signal, sys, time
signal.signal(15, lambda *_: sys.exit(0))
print("ready", flush=True)
time.sleep(600)
"""
    process = await EngineProcess.spawn(command(code))
    await ready.heard.wait()
    await process.stop(grace_seconds=30)
    assert await process.wait() == "ended with exit code 0"


async def test_stop_ends_what_does_not_heed_it(family: Family, ready: Ready) -> None:
    """An engine that ignores SIGTERM is killed, with what it started."""
    process = await EngineProcess.spawn(command(family.code("import signal; signal.signal(15, signal.SIG_IGN)")))
    await ready.heard.wait()
    await process.stop(grace_seconds=0.01)
    assert family.is_gone()


async def test_what_a_crashed_engine_leaves_is_swept_up(family: Family, ready: Ready) -> None:
    """When the engine alone dies, its children do not stay."""
    process = await EngineProcess.spawn(command(family.code("import os; print(os.getpid(), flush=True)")))
    await ready.heard.wait()
    os.kill(int(process.last_words.split()[0]), signal.SIGKILL)
    assert await process.wait() == "was killed, perhaps for want of memory"
    assert family.is_gone()


def test_nothing_outlives_the_holder_of_the_tether(family: Family) -> None:
    """When the worker is killed outright, the engine and its own children go too."""
    arguments = [sys.executable, tether.__file__, sys.executable, "-c", family.code()]
    holder = f"""
import subprocess, time
child = subprocess.Popen({arguments!r}, stdin=subprocess.PIPE, start_new_session=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        worker.send_signal(signal.SIGKILL)
        assert family.is_gone()


def test_the_tether_refuses_a_group_that_is_not_its_own() -> None:
    """Started in somebody else's process group it would end that group, so it does not start."""
    ended = subprocess.run([sys.executable, tether.__file__, "true"], stdin=subprocess.DEVNULL, capture_output=True)
    assert (ended.returncode, b"process group" in ended.stderr) == (2, True)
