"""The sync clients against a real server in another thread's loop: same calls, same errors, no loop of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mesh.clients import EmbeddingServiceClient
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, InvalidRequest, Overloaded
from mesh.resilience import CircuitBreaker
from mesh.testing import ScriptedEmbedding, serve
from mesh.testing.embedding import HANG, Step, vector_of


@contextmanager
def serving(script: list[Step]) -> Iterator[str]:
    """A scripted worker in a thread with the process's one grpc.aio loop."""
    ready = threading.Event()
    target: list[str] = []
    over: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def run() -> None:
        stop = asyncio.Event()
        over.append((asyncio.get_running_loop(), stop))
        async with serve([ScriptedEmbedding(script).capability()]) as running:
            target.append(running.target)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(10)
    try:
        yield target[0]
    finally:
        loop, stop = over[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def test_the_calls_of_the_migration_guide_work_as_printed() -> None:
    """EmbeddingServiceClient(target, circuit_breaker=…).generate_embeddings(texts) gives float32 (n, dim)."""
    with serving([]) as target:
        client = EmbeddingServiceClient(target, circuit_breaker=CircuitBreaker(failure_threshold=5, timeout=60))
        vectors = client.generate_embeddings(["a", "bee"])
        client.close()
    assert vectors.dtype == "float32"
    assert vectors.tolist() == [list(vector_of("a")), list(vector_of("bee"))]


def test_errors_are_the_async_clients_errors() -> None:
    """One vocabulary for both faces, the caller's deadline included."""
    with serving([Overloaded("busy", retry_after=3.0), HANG]) as target, EmbeddingServiceClient(target) as client:
        with pytest.raises(Overloaded) as caught:
            client.embed(["a"])
        assert caught.value.retry_after == 3.0
        with pytest.raises(DeadlineExceeded):
            client.embed(["a"], deadline=Deadline.after(0.1))


def test_a_sync_stream_runs_both_ways() -> None:
    """Batches from an ordinary iterator, results from an ordinary iterator, errors typed."""
    batches = [["a"], ["bb"], ["ccc"]]
    with serving([None, None, None, InvalidRequest("no")]) as target, EmbeddingServiceClient(target) as client:
        lengths = [result.array()[0][0] for result in client.embed_stream(batches)]
        with pytest.raises(InvalidRequest):
            list(client.embed_stream([["x"]]))
    assert lengths == [1.0, 2.0, 3.0]


def test_one_client_serves_several_threads() -> None:
    """Each thread gets its own answer."""
    with serving([]) as target, EmbeddingServiceClient(target) as client:
        results: dict[int, float] = {}

        def ask(number: int) -> None:
            results[number] = float(client.generate_embeddings(["x" * number])[0][0])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {number: float(number) for number in range(1, 9)}
