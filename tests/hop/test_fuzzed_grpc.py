"""Every method of every service is sent what its descriptor allows and what it does not: real servicers, fast engines.

Nothing crashes, nothing hangs, and nothing that a caller sent is ever called the worker's own failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from embedding_service.embedder import Embedder
from embedding_service.servicer import EmbeddingServicer
from gpu_services.chunking.events import Event, Order
from gpu_services.chunking.service import ChunkingService
from gpu_services.chunking.servicer import ChunkingServicer
from gpu_services.gpu.reader import GpuReader
from gpu_services.gpu.servicer import GpuServicer
from gpu_services.settings import GpuServicesSettings
from inference.engines import Head
from inference.life import ModelLife
from inference.runner import RunnerLimits
from inference.testing import fake_loaded_model
from llm_service.servicer import LlmServicer
from llm_service.testing import ScriptedEngine
from llm_service.writer import Limits, Writer
from mesh.serving import Capability
from mesh.testing import serve
from reranking_service.late_interaction import LateInteractionScorer
from reranking_service.reranker import Reranker
from reranking_service.servicer import RerankingServicer
from tests.hop.proto_fuzz import broken, messages
from tests.hop.test_chunking_service import TimedChild
from tests.hop.test_gpu_service import HangingSource

pytest.importorskip("tokenizers", reason="the chunking worker's environment has tokenizers")

PACKAGES = ("chunking", "embedding", "gpu", "llm", "reranking")
LIMITS = RunnerLimits(items_per_request=50, tokens_per_request=400, queued_tokens=1000, batch_tokens=32)
CALL_SECONDS = 10.0
SENDING_FAILED = "Internal error from Core"
"""What grpc.aio says of a call that was refused while it was still sending, whatever the refusal said."""
CALLERS_FAULT = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


def file_of(package: str) -> FileDescriptor:
    """A package's compiled proto file."""
    found: FileDescriptor = import_module(f"mesh.pb.{package}.v1.{package}_pb2").DESCRIPTOR
    return found


METHODS: dict[str, MethodDescriptor] = {
    f"{package}.{method.name}": method
    for package in PACKAGES
    for service in file_of(package).services_by_name.values()
    for method in service.methods
}


class WritingChild(TimedChild):
    """One chunk at once, or a file where one is wanted."""

    async def events(self, order: Order, *, seconds: float) -> AsyncGenerator[Event, None]:
        """The chunk, and the file before it."""
        if order.output_path:
            await asyncio.to_thread(Path(order.output_path).write_text, "{}")
        async for event in super().events(order, seconds=seconds):
            yield event


async def chunking(folder: Path) -> Capability:
    """Documents, by children that say one chunk."""
    from tokenizers import Tokenizer, models

    model = folder / "tiny-model"
    model.mkdir(exist_ok=True)
    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(model / "tokenizer.json"))
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')

    async def start(_: object) -> TimedChild:
        return WritingChild(0.0)

    told = GpuServicesSettings.load({}, tokenizers=(str(model),), spool_path=str(folder), pdf_pipeline="native")
    service = ChunkingService(told.chunking(), start)
    servicer = ChunkingServicer(service, default_seconds=5.0)
    return Capability(
        service="chunking.v1.ChunkingService", register=servicer.register, start=service.start, stop=service.stop
    )


async def embedding(folder: Path) -> Capability:
    """Vectors, by an engine of words."""
    life = ModelLife(lambda: Embedder(fake_loaded_model(folder), LIMITS), capability="embedding")
    servicer = EmbeddingServicer(life, max_request_bytes=1024, max_stream_requests=2)
    return Capability(
        service="embedding.v1.EmbeddingService", register=servicer.register, start=life.start, stop=life.stop
    )


async def reranking(folder: Path) -> Capability:
    """Scores, by an engine of words."""

    def load() -> Reranker:
        loaded = fake_loaded_model(folder, head=Head.TOKENS, name="late-interaction/fake")
        return Reranker(LateInteractionScorer(loaded, LIMITS))

    life = ModelLife(load, capability="reranking")
    servicer = RerankingServicer(life, max_request_bytes=1024)
    return Capability(
        service="reranking.v1.RerankingService", register=servicer.register, start=life.start, stop=life.stop
    )


async def llm(_: Path) -> Capability:
    """Two words, whatever is asked."""
    writer = Writer(ScriptedEngine(), limits=Limits(output_tokens=100, queued=4))
    servicer = LlmServicer(writer, default_deadline_seconds=5.0, max_request_bytes=1024)
    return Capability(service="llm.v1.LlmService", register=servicer.register, start=writer.start, stop=writer.stop)


async def gpu(_: Path) -> Capability:
    """No GPU."""
    reader = GpuReader(HangingSource())
    servicer = GpuServicer(reader)
    return Capability(service="gpu.v1.GpuService", register=servicer.register, start=reader.start, stop=reader.stop)


WORKERS: dict[str, Callable[[Path], Any]] = {
    "chunking": chunking, "embedding": embedding, "gpu": gpu, "llm": llm, "reranking": reranking,
}  # fmt: skip
Ask = Callable[[list[bytes]], Any]


@asynccontextmanager
async def worker(method: MethodDescriptor, folder: Path) -> AsyncIterator[Ask]:
    """The method's worker, serving; gives what asks it and tells the status."""
    package = method.containing_service.full_name.partition(".")[0]
    capability = await WORKERS[package](folder)
    async with serve([capability], watchdog_seconds=600.0) as running, grpc.aio.insecure_channel(running.target) as ch:
        health: Any = health_pb2_grpc.HealthStub(ch)
        asked = health_pb2.HealthCheckRequest(service=method.containing_service.full_name)
        async with asyncio.timeout(20):
            while (await health.Check(asked)).status != health_pb2.HealthCheckResponse.SERVING:
                await asyncio.sleep(0.02)

        async def ask(frames: list[bytes]) -> tuple[grpc.StatusCode, str]:
            status = await answered(ch, method, frames)
            assert (await health.Check(asked, timeout=5)).status == health_pb2.HealthCheckResponse.SERVING
            return status

        yield ask


async def answered(
    channel: grpc.aio.Channel, method: MethodDescriptor, frames: list[bytes]
) -> tuple[grpc.StatusCode, str]:
    """The status of one call, and its words."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    made: Any = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[method.client_streaming, method.server_streaming]
    call = made(path)(iter(frames) if method.client_streaming else frames[0], timeout=CALL_SECONDS)
    try:
        if method.server_streaming:
            async for _ in call:
                if method.name.startswith("Watch"):  # its first reply is an answer, and there is no last one
                    call.cancel()
                    break
        else:
            await call
    except grpc.aio.AioRpcError as error:
        if method.client_streaming and error.details() == SENDING_FAILED:
            return grpc.StatusCode.OK, ""
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def run(served: AbstractAsyncContextManager[Ask], work: Callable[[Ask, asyncio.Runner], None]) -> None:
    """Serve on a loop of its own while ``work`` asks: Hypothesis calls its examples one by one, without a loop."""
    with asyncio.Runner() as runner:
        ask = runner.run(served.__aenter__())
        try:
            work(ask, runner)
        finally:
            runner.run(served.__aexit__(None, None, None))


BOUNDED = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
"""The same examples each time, and none shrunk: the example that fails is printed as it is."""


@pytest.mark.parametrize("name", METHODS)
def test_whatever_the_type_allows_is_answered(name: str, tmp_path: Path) -> None:
    """Every field at every edge: an answer, or a refusal that names the caller's mistake."""
    method = METHODS[name]
    kind = messages(method.input_type)
    frames = st.lists(kind, min_size=1, max_size=3) if method.client_streaming else kind.map(lambda one: [one])

    def fuzz(ask: Ask, runner: asyncio.Runner) -> None:
        @BOUNDED
        @given(frames)
        def example(sent: list[Message]) -> None:
            code, words = runner.run(ask([each.SerializeToString() for each in sent]))
            assert code in CALLERS_FAULT, f"{code.name}: {words}\n{sent}"

        example()

    run(worker(method, tmp_path), fuzz)


@pytest.mark.parametrize("name", METHODS)
def test_whatever_bytes_come_are_answered(name: str, tmp_path: Path) -> None:
    """Valid messages with a few bytes changed, and bytes that never were a message."""
    method = METHODS[name]

    def fuzz(ask: Ask, runner: asyncio.Runner) -> None:
        @BOUNDED
        @given(messages(method.input_type), st.integers(0, 2**32), st.binary(max_size=80), st.booleans())
        def example(valid: Message, seed: int, noise: bytes, is_noise: bool) -> None:
            bent = noise if is_noise else broken(valid.SerializeToString(), seed)
            code, words = runner.run(ask([bent, bent][: 1 + method.client_streaming]))
            assert code in CALLERS_FAULT, f"{code.name}: {words}\n{bent!r}"

        example()

    run(worker(method, tmp_path), fuzz)


def test_every_service_is_fuzzed() -> None:
    """A new method or service comes along by itself; a service without a worker here does not pass unseen."""
    protos = {path.parent.parent.name for path in (Path(__file__).parents[2] / "protos").rglob("*.proto")}
    assert protos == set(PACKAGES) == set(WORKERS)
