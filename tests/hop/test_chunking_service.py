"""Chunking behind a real gRPC server, with children that are scripts: overload, lanes, children that do not come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gpu_services.chunking.events import ChildSetup, Event, Finished, Order, Ready
from gpu_services.chunking.service import ChunkingService
from gpu_services.chunking.servicer import NAME, ChunkingServicer
from gpu_services.settings import GpuServicesSettings
from mesh.clients.chunking import AsyncChunkingServiceClient, ChunkOptions
from mesh.context import CallContext, Priority, current_call
from mesh.deadline import Deadline
from mesh.docling.chunks import Chunk
from mesh.errors import DeadlineExceeded, Overloaded, Unavailable
from mesh.pb.chunking.v1 import chunking_pb2 as pb
from mesh.pb.chunking.v1.chunking_pb2_grpc import ChunkingServiceStub
from mesh.serving import Capability
from mesh.testing import serve
from mesh.wire import from_rpc_error

pytest.importorskip("tokenizers", reason="the chunking worker's environment has tokenizers")

TEXT = ChunkOptions(filename="a.txt")


class TimedChild:
    """A document process that takes ``seconds`` for a document."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.documents = 0
        self.ready: Ready | None = None
        self.killed = False

    @property
    def usable(self) -> bool:
        """Until it is killed."""
        return not self.killed

    async def events(self, order: Order, *, seconds: float) -> AsyncGenerator[Event, None]:
        """One chunk, after a while."""
        await asyncio.sleep(self.seconds)
        yield Chunk(index=0, text="t", tokens=1, contextualized_text="t")
        yield Finished(media_type="text/plain", pages=0, title="", warnings=(), chunks=1, tokens=1, characters=1)

    def kill(self) -> None:
        """Remember it."""
        self.killed = True

    async def close(self) -> None:
        """Nothing to collect."""


@dataclass
class Stage:
    """A running service, and what its children do."""

    seconds: float
    client: AsyncChunkingServiceClient
    target: str
    children: list[TimedChild]
    may_start: asyncio.Event
    start_seconds: float = 0.0

    async def chunk(self, priority: Priority = Priority.INTERACTIVE, seconds: float = 60.0) -> float:
        """Chunk a document; the seconds that took."""
        current_call.set(CallContext(priority=priority))
        began = time.monotonic()
        async for _ in self.client.chunk(b"words", TEXT, deadline=Deadline.after(seconds)):
            pass
        return time.monotonic() - began

    async def upload(
        self, document: AsyncIterable[bytes], *, priority: Priority = Priority.INTERACTIVE, seconds: float = 60.0
    ) -> None:
        """Upload once the worker has said that it takes the document."""
        async with grpc.aio.insecure_channel(self.target) as channel:
            stub: Any = ChunkingServiceStub(channel)

            async def frames() -> AsyncIterator[pb.ChunkRequest]:
                yield pb.ChunkRequest(header=pb.ChunkHeader(filename="a.txt"))
                await call.initial_metadata()
                if not call.done():
                    async for data in document:
                        yield pb.ChunkRequest(data=data)

            context = CallContext(priority=priority)
            call = stub.Chunk(frames(), timeout=seconds, metadata=context.to_metadata())
            try:
                async for _ in call:
                    pass
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error, hop="chunking", caller_time_is_up=True) from error
            finally:
                call.cancel()

    async def until_at_work(self) -> None:
        """Wait until a child has been given a document."""
        async with asyncio.timeout(12):
            while not any(child.documents for child in self.children):
                await asyncio.sleep(0.005)

    async def until(self, *, serving: bool) -> None:
        """Wait until health says so."""
        async with asyncio.timeout(12), grpc.aio.insecure_channel(self.target) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            while True:
                answer = await health.Check(health_pb2.HealthCheckRequest(service=NAME), timeout=1)
                if (answer.status == health_pb2.HealthCheckResponse.SERVING) is serving:
                    return
                await asyncio.sleep(0.02)


@asynccontextmanager
async def stage(
    folder: Path, *, document_seconds: float, start_seconds: float = 0.0, may_start: bool = True, **settings: Any
) -> AsyncIterator[Stage]:
    """The capability as the worker offers it.

    Args:
        folder: for what it writes.
        document_seconds: what a child takes for a document.
        start_seconds: what a child takes to start; the first takes no time.
        may_start: whether children start; otherwise it is not waited for.
        settings: the worker's.
    """
    from tokenizers import Tokenizer, models

    model = folder / "tiny-model"
    model.mkdir()
    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(model / "tokenizer.json"))
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    children: list[TimedChild] = []
    gate = asyncio.Event()
    if may_start:
        gate.set()

    async def start(_: ChildSetup) -> TimedChild:
        if not gate.is_set():
            raise Unavailable("There is no memory for it.", reason="CHILD_DOES_NOT_START")
        await asyncio.sleep(made.start_seconds if children else 0.0)
        children.append(TimedChild(document_seconds))
        return children[-1]

    loaded = GpuServicesSettings.load(
        {}, tokenizers=(str(model),), spool_path=str(folder), pdf_pipeline="native", **settings
    )
    service = ChunkingService(loaded.chunking(), start)
    capability = Capability(
        service=NAME,
        register=ChunkingServicer(service, default_seconds=30.0).register,
        start=service.start,
        unhealthy=service.unhealthy,
        stop=service.stop,
    )
    async with serve([capability]) as running, AsyncChunkingServiceClient(running.target) as client:
        made = Stage(document_seconds, client, running.target, children, gate, start_seconds)
        if may_start:
            await made.until(serving=True)
        yield made


async def _words() -> AsyncIterator[bytes]:
    yield b"words"


async def test_ten_times_too_much_is_refused_quickly_and_costs_no_goodput(tmp_path: Path) -> None:
    """Open loop for 2 s at ten times the capacity: the children stay busy, refusals are quick and say when to return,
    who is let in is done in time, and soon after it ends a document is done at once.
    """
    children, seconds, deadline = 2, 3.0, 2.5
    async with stage(tmp_path, document_seconds=0.2, children=children, max_queued_documents=64) as made:
        capacity = children / made.seconds
        for _ in range(10):
            await made.chunk()  # so that it is known what a document takes
        done, late, refusals = 0, 0, list[tuple[float, float | None]]()

        async def ask() -> None:
            nonlocal done, late
            began = time.monotonic()
            try:
                await made.upload(_words(), seconds=deadline)
                done += 1
            except Overloaded as error:
                refusals.append((time.monotonic() - began, error.retry_after))
            except DeadlineExceeded:
                late += 1

        began = time.monotonic()
        async with asyncio.TaskGroup() as asking:
            for number in range(int(10 * capacity * seconds)):
                asking.create_task(ask())
                await asyncio.sleep(max(0.0, began + number / (10 * capacity) - time.monotonic()))
        assert done >= 0.75 * capacity * seconds
        assert late <= 0.02 * (done + late)
        assert sorted(took for took, _ in refusals)[int(0.9 * len(refusals))] < 0.05
        assert all(returns for _, returns in refusals)
        assert await made.chunk() < 1.0


async def test_a_refusal_comes_before_the_upload_is_read(tmp_path: Path) -> None:
    """Who is not let in hears so for sure, and a client that waits for the worker's word has uploaded nothing."""
    async with stage(tmp_path, document_seconds=2.0, max_queued_documents=0) as made:
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                sent += 1
                yield b"x" * 65_536
                await asyncio.sleep(0.01)

        busy = asyncio.create_task(made.chunk())
        await made.until_at_work()
        began = time.monotonic()
        with pytest.raises(Overloaded):
            await made.upload(endless())
        assert time.monotonic() - began < 1.0
        assert sent == 0
        await busy


async def test_interactive_beside_a_bulk_job_waits_for_nobody(tmp_path: Path) -> None:
    """A child is reserved, so that a bulk job leaves interactive documents one."""
    async with stage(tmp_path, document_seconds=0.1, max_queued_documents=30) as made:

        async def bulk() -> None:
            while True:
                await made.chunk(Priority.BULK)

        idle = [await made.chunk() for _ in range(5)]
        job = [asyncio.create_task(bulk()) for _ in range(10)]
        await asyncio.sleep(0.3)
        beside = [await made.chunk() for _ in range(10)]
        for task in job:
            task.cancel()
        await asyncio.gather(*job, return_exceptions=True)
        assert max(beside) <= 3 * max(idle)


async def test_slow_bulk_uploads_leave_room(tmp_path: Path) -> None:
    """Bulk uploads that never end hold their share of the places; an interactive document is done beside them."""
    async with stage(tmp_path, document_seconds=0.01, max_queued_documents=6) as made:

        async def never() -> AsyncIterator[bytes]:
            yield b"x"
            await asyncio.sleep(60)

        uploads = [asyncio.create_task(made.upload(never(), priority=Priority.BULK)) for _ in range(8)]
        await asyncio.sleep(0.5)
        refused = [task for task in uploads if task.done() and isinstance(task.exception(), Overloaded)]
        assert len(refused) == 2
        assert await made.chunk() < 1.0
        for task in uploads:
            task.cancel()
        await asyncio.gather(*uploads, return_exceptions=True)


async def test_without_children_it_says_so_and_comes_back_by_itself(tmp_path: Path) -> None:
    """When the last child dies and none can be started, health says NOT_SERVING with the reason until one can."""
    async with stage(tmp_path, document_seconds=0.01) as made:
        made.may_start.clear()
        for child in made.children:
            child.kill()
        await made.until(serving=False)
        with pytest.raises(Unavailable):
            await made.chunk(seconds=5.0)
        made.may_start.set()
        await made.until(serving=True)
        await asyncio.sleep(0.1)
        async with asyncio.timeout(10):
            while not await _done(made):
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("children", [1, 2])
async def test_children_that_are_replaced_cost_nobody_a_refusal_or_a_wait(tmp_path: Path, children: int) -> None:
    """From the first moment, with a successor that takes a hundred documents' time to start: none waits for it."""
    async with stage(
        tmp_path, document_seconds=0.005, start_seconds=0.5, children=children, documents_per_child=2
    ) as made:
        took = [await made.chunk() for _ in range(60)]
        async with asyncio.timeout(10):
            while len(made.children) < children + 2:
                took.append(await made.chunk())
        assert max(took) < 0.4
        assert made.children[0].killed


async def test_a_fresh_child_for_each_document_is_waited_for_without_a_refusal(tmp_path: Path) -> None:
    """More documents at once than there are children: each waits its turn, and health never wavers."""
    async with stage(tmp_path, document_seconds=0.01, start_seconds=0.2, documents_per_child=1) as made:
        await asyncio.gather(*(made.chunk() for _ in range(6)))
        assert [child.documents for child in made.children[:6]] == [1] * 6
        await made.until(serving=True)


async def test_a_first_child_that_does_not_start_is_told_with_its_reason(tmp_path: Path) -> None:
    """Callers hear the typed reason after a few attempts, and the worker serves by itself once a child starts."""
    async with stage(tmp_path, document_seconds=0.01, may_start=False) as made:
        async with asyncio.timeout(10):
            while await _refusal(made) != "CHILD_DOES_NOT_START":
                await asyncio.sleep(0.1)
        await made.until(serving=False)
        made.may_start.set()
        await made.until(serving=True)
        await made.chunk()


async def _refusal(made: Stage) -> str:
    with pytest.raises(Unavailable) as refused:
        await made.upload(_words(), seconds=5.0)
    return refused.value.reason


async def _done(made: Stage) -> bool:
    try:
        await made.chunk()
    except Unavailable:
        return False
    return True
