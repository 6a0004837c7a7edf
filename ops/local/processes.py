"""Running commands, and finding and ending the processes of a mesh."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ops.local.console import Step
from ops.local.failures import OperatorError

RUN_ID_VARIABLE = "MESH_RUN_ID"
"""Set for the supervisor and inherited by all that it starts, so that a mesh's processes can be told from others."""

_TICK_SECONDS = 0.2
_LOG_TAIL_LINES = 20


@dataclass(frozen=True)
class Command:
    """A command to run: its arguments, where, with which environment, and the file that takes what it says."""

    arguments: Sequence[str]
    directory: Path
    environ: Mapping[str, str]
    log: Path


def run_logged(command: Command, step: Step) -> None:
    """Run a command to its end, its output in the log and its last line beside the step.

    Raises:
        OperatorError: it failed; the message carries the log's last lines.
        KeyboardInterrupt: after the command and all it started have ended.
    """
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("ab") as log:
        log.write(f"\n$ {' '.join(command.arguments)}\n".encode())
        log.flush()
        start = log.tell()
        process = subprocess.Popen(  # noqa: S603 - our own commands
            command.arguments,
            cwd=command.directory,
            env=dict(command.environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own: Ctrl-C reaches it through us, once, with all its children
        )
    try:
        while process.poll() is None:
            step.tick(_last_line(command.log, start))
            time.sleep(_TICK_SECONDS)
    except BaseException:
        end_group(process)
        raise
    if process.returncode:
        tail = "\n".join(f"    {line}" for line in _tail(command.log, start)[-_LOG_TAIL_LINES:])
        raise OperatorError(
            f"A command failed with exit code {process.returncode}. The last lines of {command.log}:\n{tail}",
            hint="Put right what these lines name (network, disk space, package index), then run this again.",
        )


def end_group(
    process: subprocess.Popen[Any], *, first: signal.Signals = signal.SIGTERM, grace_seconds: float = 5.0
) -> None:
    """End a child that leads a group, and its children: politely first, for good after the grace."""
    for number in (first, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=grace_seconds)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _tail(log: Path, start: int) -> list[str]:
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - 16384))
        return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def _last_line(log: Path, start: int) -> str:
    lines = _tail(log, start)
    return lines[-1].strip() if lines else ""


def marked(run_id: str, proc: Path = Path("/proc")) -> list[int]:
    """The processes whose environment carries this run's mark. Empty where there is no /proc."""
    mark = f"{RUN_ID_VARIABLE}={run_id}".encode()
    pids = []
    for environ in proc.glob("[0-9]*/environ"):
        try:
            carries = mark in environ.read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile, or it is another user's
            continue
        if carries and _alive(environ.parent):
            pids.append(int(environ.parent.name))
    return sorted(pids)


def _alive(process: Path) -> bool:
    """Whether a process is more than an exit status that nobody has read yet."""
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def end_marked(run_id: str, *, grace_seconds: float) -> list[int]:
    """End every process of a run: SIGTERM, and SIGKILL after the grace. Returns those that had to be ended."""
    ended = marked(run_id)
    _signal(ended, signal.SIGTERM)
    if not wait_until(lambda: not marked(run_id), seconds=grace_seconds):
        _signal(marked(run_id), signal.SIGKILL)
        wait_until(lambda: not marked(run_id), seconds=5)
    return ended


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def wait_until(condition: Callable[[], bool], *, seconds: float, interval: float = 0.1) -> bool:
    """Wait for a condition. Returns whether it came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(interval)
    return True


def interrupt_on_termination() -> None:
    """Make SIGTERM and SIGHUP end these commands as Ctrl-C does: tidily."""

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)


def ignore_interrupts() -> None:
    """Let nothing but SIGKILL end these commands from here on."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
