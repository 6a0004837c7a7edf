"""An open-loop HTTP load generator: requests leave when they are due, whatever became of those before them.

A closed loop waits for its answers, so an overloaded server slows its own load down and looks well. Here a request that
is due is sent at once on a free connection of a bounded pool, and its latency counts from the moment at which it was
due: what the generator or a full pool added is in the figure and not hidden by it.

It runs as a process of its own (``python -m tests.chaos.openloop PLAN RECORD``, two files of JSON), so that neither the
test's loop disturbs it nor it the test's. It sends bytes that were written beforehand and reads of an answer what it
must: status, length and Retry-After.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import uvloop

from ops.local.layout import CHECKOUT
from tests.chaos.openloop_record import GAVE_UP, LOST, UNSENT, Answer, Phase, Plan, Record, Span

_SWEEP_SECONDS = 0.02
_DIAL_SECONDS = 0.5
_AFTER_FAILURE_MS = 50.0


class Request:
    """One request on its way."""

    __slots__ = ("body", "due", "lane", "open", "phase")

    def __init__(self, *, phase: int, due: float, body: bytes, lane: bool) -> None:
        self.phase = phase
        self.due = due
        self.body = body
        self.lane = lane
        self.open = True


class Connection(asyncio.Protocol):
    """A keep-alive HTTP/1.1 connection, for one request at a time."""

    def __init__(self, pool: Generator) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._missing = -1  # bytes of the body that are still to come; -1 while the head is
        self._status = 0
        self._retry_after_ms = 0.0
        self._last = False
        self.request: Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the pool; asyncio calls this."""
        self._transport = cast("asyncio.Transport", transport)
        self._pool.free(self)

    def send(self, request: Request) -> None:
        """Send a request; the pool hears of its end."""
        assert self._transport is not None
        self.request = request
        self._head = b""
        self._missing = -1
        self._transport.write(request.body)

    def data_received(self, data: bytes) -> None:
        """Count what came until the answer is whole; asyncio calls this."""
        if self._missing < 0:
            data = self._head + data
            blank = data.find(b"\r\n\r\n")
            if blank < 0:
                self._head = data
                return
            self._missing = self._read_head(data[:blank].lower()) + blank + 4
        self._missing -= len(data)
        if self._missing > 0:
            return
        request, self.request = self.request, None
        if request is None or self._missing < 0:
            self.abort()
            return
        if self._last:
            self.abort()
        self._pool.answered(request, self._status, self._retry_after_ms)
        if not self._last:
            self._pool.free(self)

    def _read_head(self, head: bytes) -> int:
        """Note status and advice; the body's length."""
        self._status = int(head[9:12])
        self._last = b"\r\nconnection: close" in head
        self._retry_after_ms = _number(head, b"\r\nretry-after-ms:") if self._status >= 400 else 0.0
        return int(_number(head, b"\r\ncontent-length:"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the pool; asyncio calls this."""
        self._transport = None
        request, self.request = self.request, None
        self._pool.closed(self, request, answered_in_part=bool(self._head) or self._missing >= 0)

    def abort(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()


def _number(head: bytes, name: bytes) -> float:
    start = head.find(name)
    if start < 0:
        return 0.0
    end = head.find(b"\r\n", start + 2)
    return float(head[start + len(name) : end if end > 0 else None])


def arrivals(phase: Phase, seed: str) -> Iterator[float]:
    """Seconds from the phase's begin at which its requests are due: the same for the same seed."""
    if phase.even:
        yield from (number / phase.rate for number in range(round(phase.seconds * phase.rate)))
        return
    source = random.Random(seed)
    due = source.expovariate(phase.rate)
    while due < phase.seconds:
        yield due
        due += source.expovariate(phase.rate)


class Generator:
    """Runs a plan on the running event loop."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._bodies = itertools.cycle(plan.requests)
        self._idle: list[Connection] = []
        self._dialling = 0
        self._connections: set[Connection] = set()
        self._waiting: deque[Request] = deque()
        self._open: deque[Request] = deque()  # in the order in which they were due, so the oldest stands first
        self._holders: dict[Request, Connection] = {}
        self._pauses: list[tuple[float, int]] = []
        self._answers: list[Answer] = []
        self._phase = 0
        self._ends_at = 0.0
        self._began = 0.0
        self._resent = 0
        self._latest = 0.0
        self._most = 0

    async def run(self) -> Record:
        """All phases, one behind the other, and then what is still under way."""
        cpu, self._began = time.process_time(), time.monotonic()
        sweeper = self._loop.create_task(self._sweep())
        spans = []
        for number, phase in enumerate(self._plan.phases):
            self._phase = number
            begin = time.monotonic()
            self._ends_at = begin + phase.seconds
            if phase.rate:
                await self._open_loop(phase, begin)
            else:
                await self._closed_loop(phase)
            spans.append(Span(phase.name, begin - self._began, time.monotonic() - self._began))
        while self._holders or self._waiting:
            await asyncio.sleep(_SWEEP_SECONDS)
        sweeper.cancel()
        for connection in list(self._connections):
            connection.abort()
        return Record(
            spans=tuple(spans), answers=tuple(self._answers), began=self._began, resent=self._resent,
            cpu_seconds=time.process_time() - cpu, latest_send_seconds=self._latest, most_connections=self._most,
        )  # fmt: skip

    async def _open_loop(self, phase: Phase, begin: float) -> None:
        for offset in arrivals(phase, f"{self._plan.seed}:{self._phase}"):
            due = begin + offset
            now = time.monotonic()
            if due > now:
                await asyncio.sleep(due - now)
            self._latest = max(self._latest, time.monotonic() - due)
            self._submit(Request(phase=self._phase, due=due, body=next(self._bodies), lane=False))
        await asyncio.sleep(max(0.0, self._ends_at - time.monotonic()))

    async def _closed_loop(self, phase: Phase) -> None:
        """As many under way as there are lanes. A lane that is told to come back later does so, to the millisecond."""
        self._left = phase.most or sys.maxsize
        for _ in range(phase.concurrency):
            self._next_of_lane(self._phase)
        while (now := time.monotonic()) < self._ends_at and (self._left > 0 or self._holders or self._waiting):
            while self._pauses and self._pauses[0][0] <= now:
                self._next_of_lane(heapq.heappop(self._pauses)[1])
            await asyncio.sleep(0.002)
        self._pauses.clear()

    def _next_of_lane(self, phase: int) -> None:
        now = time.monotonic()
        if phase == self._phase and now < self._ends_at and self._left > 0:
            self._left -= 1
            self._submit(Request(phase=phase, due=now, body=next(self._bodies), lane=True))

    def _submit(self, request: Request) -> None:
        if self._idle:
            self._send(self._idle.pop(), request)
            return
        self._waiting.append(request)
        if len(self._connections) + self._dialling < self._plan.connections and self._dialling < len(self._waiting):
            self._dialling += 1
            self._loop.create_task(self._dial())

    def _send(self, connection: Connection, request: Request) -> None:
        self._holders[request] = connection
        self._open.append(request)
        connection.send(request)

    async def _dial(self) -> None:
        made = Connection(self)
        try:
            async with asyncio.timeout(_DIAL_SECONDS):
                await self._loop.create_connection(lambda: made, self._plan.host, self._plan.port)
        except OSError:
            if self._waiting:
                self._note(self._waiting.popleft(), LOST)
        finally:
            self._dialling -= 1

    def free(self, connection: Connection) -> None:
        """A connection has no request."""
        self._connections.add(connection)
        self._most = max(self._most, len(self._connections))
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def answered(self, request: Request, status: int, retry_after_ms: float) -> None:
        """A request has its answer."""
        self._holders.pop(request, None)
        self._note(request, status, retry_after_ms)

    def closed(self, connection: Connection, request: Request | None, *, answered_in_part: bool) -> None:
        """A connection is gone, and its request with it, unless the server closed before it saw any of it."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if request is None or not request.open:
            return
        self._holders.pop(request, None)
        if not answered_in_part and time.monotonic() - request.due < _DIAL_SECONDS:
            self._resent += 1
            self._submit(request)
        else:
            self._note(request, LOST)

    def _note(self, request: Request, status: int, retry_after_ms: float = 0.0) -> None:
        now = time.monotonic()
        request.open = False
        self._answers.append(
            Answer(request.phase, request.due - self._began, now - request.due, status, retry_after_ms)
        )
        if request.lane:
            if retry_after_ms or status < 0:
                told = retry_after_ms if self._plan.phases[request.phase].obeys else 0.0
                heapq.heappush(self._pauses, (now + (told or _AFTER_FAILURE_MS) / 1000, request.phase))
            else:
                self._next_of_lane(request.phase)

    async def _sweep(self) -> None:
        """Give up what nobody would wait for any longer."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            oldest = time.monotonic() - self._plan.give_up_seconds
            while self._waiting and self._waiting[0].due < oldest:
                self._note(self._waiting.popleft(), UNSENT)
            while self._open and (not self._open[0].open or self._open[0].due < oldest):
                request = self._open.popleft()
                holder = self._holders.pop(request, None)
                if holder is not None:
                    self._note(request, GAVE_UP)
                    holder.abort()


async def drive(plan: Plan) -> Record:
    """Run a plan in a process of its own.

    Raises:
        RuntimeError: the generator failed; its last words are in the message.
    """
    with tempfile.TemporaryDirectory(prefix="load-") as directory:
        told, noted = Path(directory) / "plan.json", Path(directory) / "record.json"
        told.write_bytes(plan.to_json())
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, told, noted, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            _, errors = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            raise RuntimeError(f"The load generator failed: {errors.decode(errors='replace')[-1500:]}")
        return Record.from_json(noted.read_bytes())


async def generate(plan: Plan) -> Record:
    """Run a plan here."""
    # A collection would stop all requests at once; nothing here makes cycles.
    gc.freeze()
    gc.disable()
    return await Generator(plan).run()


def main(plan: Path, record: Path) -> None:
    """Run the plan in one file, and write what came of it to another."""
    record.write_bytes(uvloop.run(generate(Plan.from_json(plan.read_bytes()))).to_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
