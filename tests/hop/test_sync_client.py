"""The sync clients against a real server in another thread's loop: same calls, same errors, no loop of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from mesh.clients import EmbeddingServiceClient
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, InvalidRequest, Overloaded, Unavailable
from mesh.resilience import CircuitBreaker
from mesh.testing import ScriptedEmbedding, serve_in_thread
from mesh.testing.embedding import HANG, Step, vector_of


def serving(script: list[Step]) -> AbstractContextManager[str]:
    """A scripted worker in a thread."""
    return serve_in_thread([ScriptedEmbedding(script).capability()])


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


def test_a_client_that_was_closed_can_be_used_again() -> None:
    """It connects and probes anew."""
    with serving([]) as target:
        client = EmbeddingServiceClient(target)
        client.generate_embeddings(["a"])
        client.close()
        client.generate_embeddings(["a"])
        started = time.monotonic()
        while not client.hop.status().serving and time.monotonic() - started < 5:
            time.sleep(0.01)
        assert client.hop.status().serving
        client.close()


def test_an_error_of_the_callers_own_requests_comes_back_as_itself() -> None:
    """As with the async client."""

    def batches() -> Iterator[list[str]]:
        yield ["a"]
        raise LookupError("my own")

    with serving([]) as target, EmbeddingServiceClient(target) as client:
        with pytest.raises(LookupError, match="my own"):
            list(client.embed_stream(batches()))


def test_a_name_is_looked_up_before_the_first_call() -> None:
    """The first call waits for it."""
    with serving([]) as target, EmbeddingServiceClient(target.replace("127.0.0.1", "localhost")) as client:
        assert client.generate_embeddings(["a"]).shape == (1, 2)


def test_closing_under_a_call_that_is_under_way_is_told() -> None:
    """A closed client raises, typed; it never returns nothing."""
    outcomes: list[object] = []

    def ask(client: EmbeddingServiceClient) -> None:
        try:
            outcomes.append(client.embed(["a"]))
        except Unavailable as error:
            outcomes.append(error.reason)

    with serving([HANG]) as target:
        client = EmbeddingServiceClient(target)
        thread = threading.Thread(target=ask, args=(client,))
        thread.start()
        while client.hop.status().in_flight == 0:
            time.sleep(0.01)
        time.sleep(0.1)
        client.close()
        thread.join(10)
    assert outcomes in (["CLIENT_CLOSED"], ["CONNECTION_LOST"], ["CANCELLED"])
