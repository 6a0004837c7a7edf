"""A real engine process behind a real worker, being hurt: what its clients see, and that it comes back by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llm_service.__main__ import make_capability
from llm_service.servicer import SERVICE
from llm_service.settings import LlmSettings
from mesh.clients.llm import AsyncLLMServiceClient, ChatMessage, Event, Finish, Generation, Piece, Role
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, Internal, MeshError, Unavailable
from mesh.testing import serve

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the engine's process by /proc")
tokenizers = pytest.importorskip("tokenizers", reason="counts the prompt's tokens")

FAKE_SERVE = Path(__file__).with_name("fake_serve.py")


def chat(text: str) -> Generation:
    """One message; its words tell the fake engine what to do."""
    return Generation(messages=(ChatMessage(Role.USER, text),))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory that passes inspection."""
    path = tmp_path / "tiny-chat"
    path.mkdir()
    (path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 512}')
    (path / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.save(str(path / "tokenizer.json"))
    header = b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return path


@pytest.fixture
def engine_python(tmp_path: Path) -> Path:
    """What is run in place of the engine's Python."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE_SERVE}" "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@dataclass
class Running:
    """A worker with its engine process."""

    client: AsyncLLMServiceClient
    target: str
    engine: Any

    def engine_pid(self) -> int:
        """The engine itself, below its tether."""
        tether = self.engine._supervisor._child._process.pid
        children = Path(f"/proc/{tether}/task/{tether}/children").read_text().split()
        return int(children[0])

    async def is_serving(self) -> bool:
        """What its health says."""
        async with grpc.aio.insecure_channel(self.target) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=5)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def load_is(self, count: int) -> None:
        """Wait until the engine says that it runs so many, which takes a reading's time."""
        async with asyncio.timeout(1.5):
            while (load := self.engine.load()) is None or load.running != count:
                await asyncio.sleep(0.02)

    async def seconds_until(self, *, serving: bool, within: float) -> float:
        """How long until its health says so."""
        began = time.monotonic()
        async with asyncio.timeout(within):
            while await self.is_serving() is not serving:
                await asyncio.sleep(0.05)
        return time.monotonic() - began


Make = Callable[..., Awaitable[Running]]


@pytest.fixture
async def make(model: Path, engine_python: Path) -> AsyncIterator[Make]:
    """Makes workers whose engine is the fake, and stops them."""
    async with AsyncExitStack() as stack:

        async def one(**settings: Any) -> Running:
            capability = make_capability(LlmSettings(model=str(model), engine_python=str(engine_python), **settings))
            running = await stack.enter_async_context(serve([capability], canary_interval_seconds=1.0))
            client = await stack.enter_async_context(AsyncLLMServiceClient(running.target))
            engine = capability.start.__self__.engine  # type: ignore[attr-defined] # a bound method
            made = Running(client, running.target, engine)
            await made.seconds_until(serving=True, within=20)
            return made

        yield one


async def answered(running: Running, within: float = 20.0) -> float:
    """Ask until there is an answer; the seconds that took."""
    began = time.monotonic()
    async with asyncio.timeout(within):
        while True:
            try:
                assert (await running.client.complete(chat("hello"))).text == "one two"
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return time.monotonic() - began


async def test_an_engine_killed_mid_stream_is_typed_at_once_and_replaced(make: Make) -> None:
    """The client hears ENGINE_LOST within a second after the last good piece, never a Finish; then it serves again."""
    running = await make()
    seen: list[Event] = []
    killed_at = 0.0

    async def read() -> None:
        nonlocal killed_at
        async for event in running.client.generate(chat("pieces 100")):
            seen.append(event)
            if len(seen) == 4:
                killed_at = time.monotonic()
                os.kill(running.engine_pid(), signal.SIGKILL)

    with pytest.raises(Unavailable) as caught:
        await read()
    assert time.monotonic() - killed_at < 1.0
    assert caught.value.reason == "ENGINE_LOST"
    assert not any(isinstance(event, Finish) for event in seen)
    await asyncio.sleep(0.1)
    with pytest.raises(Unavailable) as refused:
        await running.client.complete(chat("hello"), deadline=Deadline.after(5.0))
    assert refused.value.reason == "ENGINE_RESTARTING"
    assert await answered(running) < 5.0


async def test_vllm_is_served_over_its_socket_and_replaced(make: Make) -> None:
    """It answers, its load is known, and killed it comes back on the same socket, its load known again."""
    running = await make(engine="vllm")
    pid = running.engine_pid()
    assert (await running.client.complete(chat("hello"))).text == "one two"
    assert (await running.client.info()).engine_version == "0.0.fake"
    await running.load_is(0)
    os.kill(pid, signal.SIGKILL)
    await running.seconds_until(serving=False, within=5)
    assert await answered(running) < 5.0
    assert running.engine_pid() != pid
    await running.load_is(0)


async def test_a_caller_who_leaves_frees_the_engine(make: Make) -> None:
    """Within a second of a cancel the engine counts one request less: it stops at the closed connection."""
    running = await make(engine="vllm")
    started = asyncio.Event()

    async def read() -> None:
        async for event in running.client.generate(chat("pieces 600")):
            if isinstance(event, Piece):
                started.set()

    reading = asyncio.create_task(read())
    await started.wait()
    await running.load_is(1)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await running.load_is(0)


async def test_a_slow_prompt_is_no_hang(make: Make) -> None:
    """An engine that computes for longer than a hang may last is left alone, and answers."""
    running = await make(hang_seconds=1.0)
    pid = running.engine_pid()
    assert (await running.client.complete(chat("compute 3.5"))).text == "one two"
    assert (running.engine_pid(), await running.is_serving()) == (pid, True)


async def test_a_request_behind_an_abandoned_prompt_is_answered(make: Make) -> None:
    """What somebody asked for and left counts for nobody else's time."""
    running = await make(stall_seconds=2.0)
    pid = running.engine_pid()
    with pytest.raises(DeadlineExceeded):
        await running.client.complete(chat("compute 1.8"), deadline=Deadline.after(0.2))
    assert (await running.client.complete(chat("compute 1.5"))).text == "one two"
    assert running.engine_pid() == pid


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
async def test_an_engine_that_hangs_where_it_computes_is_replaced(make: Make, busy: bool) -> None:
    """Its health route answers all the while; the request in it fails typed, and the next engine serves."""
    running = await make(hang_seconds=2.0)
    pid = running.engine_pid()
    if busy:
        with pytest.raises(Unavailable):
            await running.client.complete(chat("hang"), deadline=Deadline.after(20.0))
    else:
        with pytest.raises(DeadlineExceeded):
            await running.client.complete(chat("hang"), deadline=Deadline.after(0.3))
        await running.seconds_until(serving=False, within=10)
    await running.seconds_until(serving=True, within=10)
    await answered(running)
    assert running.engine_pid() != pid


async def test_a_poisoned_engine_is_found_under_load_and_replaced(make: Make) -> None:
    """Where every request fails the engine is restarted; a single one that fails costs nobody else anything."""
    running = await make()
    pid = running.engine_pid()
    with pytest.raises(Internal):
        await running.client.complete(chat("fail"))
    assert (await running.client.complete(chat("hello"))).text == "one two"
    assert running.engine_pid() == pid
    with pytest.raises(Internal):
        await running.client.complete(chat("poison"))
    async with asyncio.timeout(10):
        while not await _refused(running):
            pass
    await answered(running)
    assert running.engine_pid() != pid


async def _refused(running: Running) -> bool:
    """Ask once more; whether the worker knows by now."""
    try:
        await running.client.complete(chat("hello"))
    except MeshError as error:
        return isinstance(error, Unavailable)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
async def test_a_stopped_engine_is_told_within_ten_seconds_and_replaced(make: Make, busy: bool) -> None:
    """With the limits that ship: NOT_SERVING within 10 s, the call in flight fails typed, and it serves by itself."""
    running = await make()
    pid = running.engine_pid()
    writing = None
    if busy:
        writing = asyncio.create_task(running.client.complete(chat("pieces 600"), deadline=Deadline.after(60)))
        await asyncio.sleep(0.5)
    os.kill(pid, signal.SIGSTOP)
    assert await running.seconds_until(serving=False, within=15) <= 10.0
    if writing is not None:
        with pytest.raises(Unavailable):
            await writing
    assert await answered(running) < 5.0
    assert running.engine_pid() != pid


@dataclass
class WorkerProcess:
    """The worker as it is started by an operator, with its engine and tether below it."""

    process: asyncio.subprocess.Process
    client: AsyncLLMServiceClient

    def family(self) -> list[int]:
        """The tether and the engine."""
        (tether,) = _children(self.process.pid)
        return [tether, *_children(tether)]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
async def worker(model: Path, engine_python: Path) -> AsyncIterator[WorkerProcess]:
    """``python -m llm_service``, serving."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"PORT": port, "MODEL": model, "ENGINE_PYTHON": engine_python, "DRAIN_GRACE_SECONDS": 10}
    environment = {**os.environ, **{f"LLM_{name}": str(value) for name, value in settings.items()}}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "llm_service", env=environment)
    async with AsyncLLMServiceClient(f"127.0.0.1:{port}") as client:
        made = WorkerProcess(process, client)
        try:
            async with asyncio.timeout(30):
                while not await _says_hello(client):
                    await asyncio.sleep(0.1)
            yield made
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _says_hello(client: AsyncLLMServiceClient) -> bool:
    try:
        return (await client.complete(chat("hello"), deadline=Deadline.after(2.0))).text == "one two"
    except MeshError:
        return False


async def _all_gone(family: list[int], within: float) -> None:
    async with asyncio.timeout(within):
        while any(map(_is_alive, family)):
            await asyncio.sleep(0.02)


async def test_sigterm_lets_a_stream_finish_and_leaves_no_process(worker: WorkerProcess) -> None:
    """The answer under way comes whole, the exit code is 0, and neither engine nor tether stays."""
    family = worker.family()
    assert len(family) == 2
    events: list[Event] = []
    async for event in worker.client.generate(chat("pieces 20")):
        events.append(event)
        if len(events) == 3:
            worker.process.terminate()
    assert isinstance(events[-1], Finish)
    assert len(events) == 22
    async with asyncio.timeout(10):
        assert await worker.process.wait() == 0
    await _all_gone(family, within=1.0)


async def test_a_second_sigterm_ends_at_once_and_leaves_no_process(worker: WorkerProcess) -> None:
    """Whoever cannot wait for the drain waits no longer, and the tether takes the engine along."""
    family = worker.family()
    writing = asyncio.create_task(worker.client.complete(chat("pieces 90")))
    await asyncio.sleep(0.5)
    worker.process.terminate()
    await asyncio.sleep(0.3)
    assert worker.process.returncode is None
    worker.process.terminate()
    async with asyncio.timeout(1):
        assert await worker.process.wait() != 0
    with pytest.raises(Unavailable):
        await writing
    await _all_gone(family, within=2.0)
