"""Processes that the benchmark starts, watches and ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

_POLL_SECONDS = 0.005
_END_SECONDS = 15
_STAT_USER, _STAT_SYSTEM = 11, 12  # counted behind the command's name in /proc/<pid>/stat


class DidNotStart(Exception):
    """A process of the benchmark ended or stayed silent; the message carries its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run.

    Attributes:
        name: what it is called in messages.
        command: the command line.
        port: the loopback port that it will listen on.
        variables: added to the environment.
        ready_path: answers 200 once it is ready; empty means that an open port is enough.
        ready_within_seconds: how long that may take.
    """

    name: str
    command: Sequence[str | Path]
    port: int
    variables: Mapping[str, str] = field(default_factory=dict)
    ready_path: str = ""
    ready_within_seconds: float = 90.0


@dataclass(frozen=True, slots=True)
class Running:
    """A process under measurement."""

    name: str
    pid: int
    url: str
    ready_seconds: float

    def cpu_seconds(self) -> float | None:
        """CPU time that it has used; None where the system does not say."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[_STAT_USER]) + int(fields[_STAT_SYSTEM])) / os.sysconf("SC_CLK_TCK")

    def rss_bytes(self) -> int | None:
        """Memory that it holds; None where the system does not say."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return None
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running(program: Program) -> AsyncIterator[Running]:
    """Run a program until the block is left.

    Raises:
        DidNotStart: it ended, or did not get ready in time.
    """
    url = f"http://127.0.0.1:{program.port}"
    asked = url + program.ready_path if program.ready_path else ""
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *program.command, env={**os.environ, **program.variables}, stdin=asyncio.subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        try:
            while not await asyncio.to_thread(_answers, program.port, asked):
                waited = time.perf_counter() - began
                if process.returncode is not None or waited > program.ready_within_seconds:
                    output.seek(0)
                    words = output.read()[-1500:].decode("utf-8", errors="replace")
                    raise DidNotStart(f"{program.name} was not ready after {waited:.0f} s. Its last words:\n{words}")
                await asyncio.sleep(_POLL_SECONDS)
            yield Running(program.name, process.pid, url, time.perf_counter() - began)
        finally:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _END_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
    # It leads a group of its own. Servers of several processes do not always end those that they started.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _answers(port: int, url: str) -> bool:
    if not url:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310 - a loopback address of our own
            return bool(answer.status == 200)
    except OSError:
        return False


def disk_bytes(directory: Path) -> int:
    """What a directory takes on disk, each file once."""
    seen: set[int] = set()
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            stat = os.lstat(os.path.join(folder, name))
            if stat.st_ino not in seen:
                seen.add(stat.st_ino)
                total += stat.st_blocks * 512
    return total
