"""One run of an engine as a child process: spawned on a tether, its output in our log, ended with all it started."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llm_service import tether
from llm_service.cpu_time import group_cpu_seconds
from mesh.telemetry import fields, get_logger

log = get_logger("engine")

_LINE_END = re.compile(rb"[\r\n]+")
_LONGEST_LINE = 4_000


@dataclass(frozen=True)
class Command:
    """What to run.

    Attributes:
        arguments: the program and what it is told.
        environment: all of its variables.
        quiet: matches lines of its output that say nothing to an operator.
        computes_in_children: the program answers the door alone, so that only what it starts tells whether it works.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    quiet: re.Pattern[str] | None = None
    computes_in_children: bool = False


class EngineProcess:
    """A running engine. Made by ``spawn``."""

    def __init__(self, process: asyncio.subprocess.Process, output: asyncio.StreamReader, command: Command) -> None:
        self._process = process
        self._quiet = command.quiet
        self._computes_in_children = command.computes_in_children
        self._last_lines: deque[str] = deque(maxlen=5)
        self._relay = asyncio.create_task(self._relay_output(output))

    @classmethod
    async def spawn(cls, command: Command) -> EngineProcess:
        """Start the engine in a process group of its own, so that ending it ends nothing else.

        Raises:
            OSError: the system has no process, memory or descriptor to spare; nothing is left open.
        """
        # Not asyncio's own PIPE: with that, waiting for the process waits for every child that still holds its output.
        reading, writing = os.pipe()
        output = asyncio.StreamReader()
        source = os.fdopen(reading, "rb", buffering=0)
        let_go = source.close
        try:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(output), source
            )
            let_go = transport.close
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                str(Path(tether.__file__)),
                *command.arguments,
                stdin=asyncio.subprocess.PIPE,  # held open for as long as this process lives; see tether
                stdout=writing,
                stderr=writing,
                env=dict(command.environment),
                start_new_session=True,
            )
        except BaseException:
            let_go()
            raise
        finally:
            os.close(writing)
        log.info("engine started", extra=fields(pid=process.pid))
        return cls(process, output, command)

    @property
    def last_words(self) -> str:
        """The end of the engine's output: for the log, never for a client."""
        return " | ".join(self._last_lines)

    async def cpu_seconds(self) -> float | None:
        """Processor time of what computes in the engine; None where the system does not say."""
        tether = self._process.pid
        return await asyncio.to_thread(group_cpu_seconds, tether, leave_out_door=self._computes_in_children)

    async def wait(self) -> str:
        """Wait for the engine's end, sweep up what it leaves, and say how it ended."""
        code = await self._process.wait()
        self._kill_group()  # what the engine leaves; with it the output ends, and the relay
        await asyncio.wait({self._relay}, timeout=1.0)
        return describe_exit(code)

    async def stop(self, grace_seconds: float) -> None:
        """Ask it to end, and after the grace end it."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await self._process.wait()
        self.kill()
        await self.wait()

    def kill(self) -> None:
        """End it and all it started, now."""
        if self._process.returncode is None:
            self._kill_group()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _relay_output(self, output: asyncio.StreamReader) -> None:
        rest = b""
        while chunk := await output.read(65_536):
            *lines, rest = _LINE_END.split(rest + chunk)
            rest = rest[-_LONGEST_LINE:]
            for line in lines:
                self._relay_line(line)
        self._relay_line(rest)

    def _relay_line(self, line: bytes) -> None:
        text = line[:_LONGEST_LINE].decode("utf-8", errors="replace").rstrip()
        if not text or (self._quiet is not None and self._quiet.search(text)):
            return
        self._last_lines.append(text)
        log.info("engine: %s", text)


def describe_exit(code: int) -> str:
    """An exit code in words. The tether reports signal N as 128 + N.

    >>> describe_exit(137)
    'was killed, perhaps for want of memory'
    """
    if code in (137, -9):
        return "was killed, perhaps for want of memory"
    if code > 128 or code < 0:
        number = code - 128 if code > 0 else -code
        with suppress(ValueError):
            return f"was ended by {signal.Signals(number).name}"
    return f"ended with exit code {code}"
