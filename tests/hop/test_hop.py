"""A hop against a real server: what the caller gets for everything a peer can do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from mesh.clients.embedding import AsyncEmbeddingServiceClient
from mesh.context import CallContext, current_call
from mesh.deadline import Deadline
from mesh.endpoint import SERVING, UNREACHABLE
from mesh.errors import (
    AttemptTimedOut,
    CircuitOpen,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    MeshError,
    Overloaded,
    PayloadTooLarge,
    Unavailable,
    all_error_classes,
)
from mesh.hop import HopSettings
from mesh.resilience import BreakerState, CircuitBreaker
from mesh.testing import ScriptedEmbedding, serve
from mesh.testing.embedding import HANG, vector_of

NOWHERE = "127.0.0.1:1"


async def until(condition: object, seconds: float = 5.0) -> None:
    """Wait for a state that another task brings about."""
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_call_brings_each_caller_its_own_vectors() -> None:
    """Texts in, their vectors out, in their order."""
    async with serve([ScriptedEmbedding().capability()]) as running:
        async with AsyncEmbeddingServiceClient(running.target) as client:
            vectors = await client.generate_embeddings(["a", "bee"])
    assert vectors.tolist() == [list(vector_of("a")), list(vector_of("bee"))]


@pytest.mark.parametrize("cls", all_error_classes())
async def test_every_error_arrives_as_the_class_that_was_raised(cls: type[MeshError]) -> None:
    """An error keeps its class, text, reason, field and delay over the wire."""
    sent = cls("say what to do", reason="SOME_REASON", param="input[3]", retry_after=1.5)
    servicer = ScriptedEmbedding([sent] * 3)
    async with serve([servicer.capability()]) as running, AsyncEmbeddingServiceClient(running.target) as client:
        with pytest.raises(MeshError) as caught:
            await client.embed(["a"])
    got = caught.value
    assert (type(got), got.message, got.reason, got.param, got.retry_after, got.hop) == (
        cls, "say what to do", "SOME_REASON", "input[3]", 1.5, "embedding",
    )  # fmt: skip


async def test_a_bug_in_a_worker_reaches_the_caller_without_its_text() -> None:
    """The text of an unknown exception stays in the worker's log."""
    servicer = ScriptedEmbedding([ValueError("secret of the worker")])
    async with serve([servicer.capability()]) as running, AsyncEmbeddingServiceClient(running.target) as client:
        with pytest.raises(Internal) as caught:
            await client.embed(["a"])
    assert "secret" not in str(caught.value)


async def test_the_callers_deadline_ends_a_call_and_moves_no_breaker() -> None:
    """A caller in a hurry says nothing about the peer."""
    servicer = ScriptedEmbedding([HANG] * 10)
    async with serve([servicer.capability()]) as running, AsyncEmbeddingServiceClient(running.target) as client:
        for _ in range(6):
            with pytest.raises(DeadlineExceeded):
                await client.embed(["a"], deadline=Deadline.after(0.05))
        assert client.hop.breaker.snapshot().state is BreakerState.CLOSED
        await until(lambda: servicer.cancelled == servicer.calls)


async def test_an_attempt_that_takes_too_long_is_the_peers_failure() -> None:
    """A hung peer opens the breaker, though every caller would have waited longer."""
    servicer = ScriptedEmbedding([HANG] * 10)
    settings = HopSettings(attempt_timeout_seconds=0.1, failure_threshold=2)
    async with serve([servicer.capability()]) as running:
        async with AsyncEmbeddingServiceClient(running.target, hop=settings) as client:
            for _ in range(2):
                with pytest.raises(AttemptTimedOut):
                    await client.embed(["a"], deadline=Deadline.after(30))
            assert client.hop.breaker.snapshot().state is not BreakerState.CLOSED


async def test_a_hung_peer_fails_the_hops_own_deadline_not_the_callers() -> None:
    """A caller that names no deadline is in no hurry: who lets the default pass has failed."""
    servicer = ScriptedEmbedding([HANG] * 10)
    settings = HopSettings(default_deadline_seconds=0.1, failure_threshold=2)
    async with serve([servicer.capability()]) as running:
        async with AsyncEmbeddingServiceClient(running.target, hop=settings) as client:
            for _ in range(2):
                with pytest.raises(AttemptTimedOut):
                    await client.embed(["a"])
            assert client.hop.breaker.snapshot().state is not BreakerState.CLOSED


async def test_info_proves_nothing_about_the_engine() -> None:
    """A peer whose work fails while its Info answers is still found failing, and Info takes no probe's place."""
    servicer = ScriptedEmbedding([Internal("broken")] * 10)
    breaker = CircuitBreaker(failure_threshold=3, timeout=60, first_open_seconds=60)
    async with serve([servicer.capability()]) as running:
        async with AsyncEmbeddingServiceClient(running.target, circuit_breaker=breaker) as client:
            await until(lambda: client.hop.status().serving)
            for _ in range(3):
                await client.info()
                with pytest.raises(Internal):
                    await client.embed(["a"])
            assert breaker.snapshot().times_opened == 1
            assert client.hop.status().p50_seconds is None


async def test_a_call_that_the_limiter_refuses_takes_no_probes_place() -> None:
    """A full hop whose breaker is half-open probes as soon as it has room."""
    servicer = ScriptedEmbedding()
    breaker = CircuitBreaker(failure_threshold=1, timeout=60, first_open_seconds=60)
    async with serve([servicer.capability()]) as running:
        async with AsyncEmbeddingServiceClient(running.target, circuit_breaker=breaker) as client:
            await until(lambda: client.hop.status().serving)
            with pytest.raises(Unavailable), breaker.guard():
                raise Unavailable("down")
            breaker.peer_is_serving()
            slots = [client.hop.limiter.slot() for _ in range(client.hop.limiter.limit)]
            with pytest.raises(Overloaded):
                await client.embed(["a"])
            for slot in slots:
                slot.__exit__(None, None, None)
            assert (await client.embed(["a"])).rows == 1
            assert breaker.snapshot().state is BreakerState.CLOSED


async def test_no_work_starts_after_the_deadline() -> None:
    """A request whose time is up never leaves."""
    servicer = ScriptedEmbedding()
    async with serve([servicer.capability()]) as running, AsyncEmbeddingServiceClient(running.target) as client:
        with pytest.raises(DeadlineExceeded):
            await client.embed(["a"], deadline=Deadline.after(0))
    assert servicer.calls == 0


async def test_cancelled_callers_never_open_the_breaker() -> None:
    """However many clients leave, the peer is not to blame, and its work stops."""
    servicer = ScriptedEmbedding([HANG] * 50)
    async with serve([servicer.capability()]) as running, AsyncEmbeddingServiceClient(running.target) as client:
        calls = [asyncio.create_task(client.embed(["a"])) for _ in range(50)]
        await until(lambda: servicer.calls == 50)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert client.hop.breaker.snapshot().state is BreakerState.CLOSED
        assert client.hop.status().in_flight == 0
        await until(lambda: servicer.cancelled == 50)


async def test_a_dead_peer_is_refused_fast_and_then_locally() -> None:
    """Nobody listens: typed errors at once, and after the threshold the breaker answers without asking."""
    breaker = CircuitBreaker(failure_threshold=3, timeout=60, first_open_seconds=60)
    async with AsyncEmbeddingServiceClient(NOWHERE, circuit_breaker=breaker) as client:
        for _ in range(3):
            with pytest.raises(Unavailable):
                await client.embed(["a"])
        started = time.monotonic()
        with pytest.raises(CircuitOpen) as caught:
            await client.embed(["a"])
    assert time.monotonic() - started < 0.1
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 0


async def test_a_hop_comes_back_by_itself_when_its_peer_starts() -> None:
    """The health probe sees a late worker and reopens the breaker long before its back-off is over."""
    breaker = CircuitBreaker(failure_threshold=1, timeout=600, first_open_seconds=600)
    async with serve([ScriptedEmbedding().capability()]) as first:
        port = first.worker.port
    async with AsyncEmbeddingServiceClient(f"127.0.0.1:{port}", circuit_breaker=breaker) as client:
        with pytest.raises(Unavailable):
            await client.embed(["a"])
        assert breaker.snapshot().state is BreakerState.OPEN
        await until(lambda: client.hop.status().endpoints[0].health == UNREACHABLE)
        async with serve([ScriptedEmbedding().capability()], port=port):
            await until(lambda: client.hop.status().endpoints[0].health == SERVING)
            await until(lambda: breaker.snapshot().state is not BreakerState.OPEN)
            assert (await client.embed(["a"])).rows == 1
        assert breaker.snapshot().state is BreakerState.CLOSED


async def test_a_capability_that_cannot_start_says_why_to_the_probe() -> None:
    """The reason of NOT_SERVING is known on the caller's side, though grpc.health.v1 carries none."""
    from dataclasses import replace

    from mesh.errors import ModelUnusable

    async def broken() -> None:
        raise ModelUnusable("The file model.safetensors is truncated. Fetch it again.", reason="MODEL_TRUNCATED")

    capability = replace(ScriptedEmbedding().capability(), start=broken)
    async with serve([capability]) as running, AsyncEmbeddingServiceClient(running.target) as client:
        await until(lambda: client.hop.status().endpoints[0].reason_code == "MODEL_TRUNCATED")
        endpoint = client.hop.status().endpoints[0]
        assert (endpoint.health, endpoint.reason) == (
            "NOT_SERVING",
            "The file model.safetensors is truncated. Fetch it again.",
        )
        assert not client.hop.status().serving


async def test_a_busy_peer_does_not_open_the_breaker() -> None:
    """RESOURCE_EXHAUSTED is busy, not broken, and says when to come back."""
    servicer = ScriptedEmbedding([Overloaded("busy", retry_after=0.2)] * 20)
    async with serve([servicer.capability()]) as running, AsyncEmbeddingServiceClient(running.target) as client:
        for _ in range(20):
            with pytest.raises(Overloaded) as caught:
                await client.embed(["a"])
            assert caught.value.retry_after == 0.2
        assert client.hop.breaker.snapshot().state is BreakerState.CLOSED


async def test_a_message_over_the_hops_limit_is_too_large_not_busy() -> None:
    """GRPC's core reports both with one code; the caller sees which it is."""
    settings = HopSettings(max_message_bytes=2048)
    async with serve([ScriptedEmbedding().capability()]) as running:
        async with AsyncEmbeddingServiceClient(running.target, hop=settings) as client:
            with pytest.raises(PayloadTooLarge):
                await client.embed(["x" * 10_000])


async def test_the_request_id_travels_to_the_worker() -> None:
    """The worker logs the id that the gateway gave."""
    servicer = ScriptedEmbedding()
    token = current_call.set(CallContext(request_id="from-the-edge"))
    try:
        async with serve([servicer.capability()]) as running, AsyncEmbeddingServiceClient(running.target) as client:
            await client.embed(["a"])
    finally:
        current_call.reset(token)
    assert servicer.request_ids == ["from-the-edge"]


async def test_a_bulk_stream_keeps_the_order() -> None:
    """One answer per batch, in the order of the batches."""

    async def batches() -> AsyncIterator[list[str]]:
        for number in range(20):
            yield ["a" * (number + 1)]

    async with serve([ScriptedEmbedding().capability()]) as running:
        async with AsyncEmbeddingServiceClient(running.target) as client:
            lengths = [result.array()[0][0] async for result in client.embed_stream(batches())]
    assert lengths == [float(number + 1) for number in range(20)]


async def test_an_error_in_the_middle_of_a_stream_is_typed() -> None:
    """What was answered before the error stays; the error comes as itself."""
    servicer = ScriptedEmbedding([None, None, InvalidRequest("the third is bad")])

    async def batches() -> AsyncIterator[list[str]]:
        for text in "abcd":
            yield [text]

    got = []
    async with serve([servicer.capability()]) as running, AsyncEmbeddingServiceClient(running.target) as client:
        with pytest.raises(InvalidRequest, match="the third is bad"):
            async for result in client.embed_stream(batches()):
                got.append(result.rows)
        assert client.hop.status().in_flight == 0
    assert got == [1, 1]


async def test_an_error_of_the_callers_own_requests_comes_back_as_itself() -> None:
    """What goes wrong in the caller's generator is the caller's to see, and no fault of the peer."""

    async def batches() -> AsyncIterator[list[str]]:
        yield ["a"]
        raise LookupError("my own")

    async with serve([ScriptedEmbedding().capability()]) as running:
        async with AsyncEmbeddingServiceClient(running.target) as client:
            with pytest.raises(LookupError, match="my own"):
                async for _ in client.embed_stream(batches()):
                    pass
            assert client.hop.breaker.snapshot().consecutive_failures == 0
            assert client.hop.status().in_flight == 0


@pytest.mark.parametrize("call", ["embed", "embed_stream"])
async def test_half_a_character_is_the_callers_to_mend(call: str) -> None:
    """A lone surrogate cannot be sent; the error says where it is, instead of an encoder's own."""

    async def batches() -> AsyncIterator[list[str]]:
        yield ["fine", "half \ud83d of one"]

    async with AsyncEmbeddingServiceClient(NOWHERE) as client:
        with pytest.raises(InvalidRequest, match=r"U\+D83D at position 5"):
            if call == "embed":
                await client.embed(["fine", "half \ud83d of one"])
            else:
                await anext(client.embed_stream(batches()))


async def test_closing_a_client_is_no_cancelling_of_its_callers() -> None:
    """Whoever waits is told, typed, that the client was closed; only a task that was cancelled is cancelled."""
    servicer = ScriptedEmbedding([HANG] * 3)

    async def batches() -> AsyncIterator[list[str]]:
        yield ["a"]
        await asyncio.Event().wait()

    async def read(client: AsyncEmbeddingServiceClient) -> None:
        async for _ in client.embed_stream(batches()):
            pass

    async with serve([servicer.capability()]) as running:
        client = AsyncEmbeddingServiceClient(running.target)
        calls = [asyncio.create_task(client.embed(["a"])), asyncio.create_task(read(client))]
        cancelled = asyncio.create_task(client.embed(["a"]))
        await until(lambda: servicer.calls == 3)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        await client.close()
        await asyncio.wait([*calls])
    assert cancelled.cancelled()
    for call in calls:
        error = call.exception()
        assert isinstance(error, Unavailable)
        assert error.reason == "CLIENT_CLOSED"


async def test_a_stream_that_was_left_has_given_everything_back() -> None:
    """When closing returns, the place is free, the call is cancelled, and the caller's own iterator is closed."""
    closed: list[bool] = []

    async def batches() -> AsyncIterator[list[str]]:
        try:
            while True:
                yield ["a"]
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async with serve([ScriptedEmbedding().capability()]) as running:
        async with AsyncEmbeddingServiceClient(running.target) as client:
            stream = client.embed_stream(batches())
            await anext(stream)
            assert client.hop.status().in_flight == 1
            await stream.aclose()
            assert client.hop.status().in_flight == 0
            assert client.hop.status().endpoints[0].in_flight == 0
            assert closed == [True]


async def test_a_refused_stream_closes_the_callers_iterator() -> None:
    """Also where that still waits for its next item."""
    closed: list[bool] = []

    async def batches() -> AsyncIterator[list[str]]:
        try:
            yield ["a"]
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    servicer = ScriptedEmbedding([InvalidRequest("no")])
    async with serve([servicer.capability()]) as running, AsyncEmbeddingServiceClient(running.target) as client:
        with pytest.raises(InvalidRequest):
            async for _ in client.embed_stream(batches()):
                pass
        assert closed == [True]


async def test_a_stream_that_answers_until_our_own_limit_is_no_failure_of_the_peer() -> None:
    """Five long answers in a row must not take the hop from everybody else."""

    async def batches() -> AsyncIterator[list[str]]:
        while True:
            yield ["a"]
            await asyncio.sleep(0.02)

    settings = HopSettings(default_deadline_seconds=0.2, failure_threshold=2)
    async with serve([ScriptedEmbedding().capability()]) as running:
        async with AsyncEmbeddingServiceClient(running.target, hop=settings) as client:
            for _ in range(4):
                with pytest.raises(DeadlineExceeded):
                    async for _ in client.embed_stream(batches()):
                        pass
            assert client.hop.breaker.snapshot().times_opened == 0
            assert client.hop.limiter.limit == 256


def test_a_start_outside_of_a_loop_fails_and_spoils_nothing() -> None:
    """The same client works once it is started where it can."""
    client = AsyncEmbeddingServiceClient(NOWHERE)
    with pytest.raises(RuntimeError):
        client.start()

    async def use() -> None:
        async with serve([ScriptedEmbedding().capability()]) as running:
            other = AsyncEmbeddingServiceClient(running.target)
            async with other:
                await other.embed(["a"])
        with pytest.raises(Unavailable):
            await client.embed(["a"], deadline=Deadline.after(2.0))
        await client.close()

    asyncio.run(use())


async def test_a_refused_info_is_a_reason_only_where_it_tells_one() -> None:
    """A busy Info says nothing about why a capability does not serve, and must not narrow the hop."""
    from dataclasses import replace

    async def broken() -> None:
        raise Overloaded("no", retry_after=1.0)

    capability = replace(ScriptedEmbedding().capability(), start=broken)
    async with serve([capability]) as running, AsyncEmbeddingServiceClient(running.target) as client:
        await until(lambda: client.hop.status().endpoints[0].reason_code == "NOT_SERVING")
        with pytest.raises(Unavailable):
            await client.embed(["a"])
        assert client.hop.limiter.limit == 256


async def test_closing_a_client_says_nothing_about_the_peer() -> None:
    """A breaker that several clients share stays closed when one of them is closed under its calls."""
    servicer = ScriptedEmbedding([HANG] * 6)
    breaker = CircuitBreaker(failure_threshold=3, timeout=60)
    async with serve([servicer.capability()]) as running:
        client = AsyncEmbeddingServiceClient(running.target, circuit_breaker=breaker)
        calls = [asyncio.create_task(client.embed(["a"])) for _ in range(6)]
        await until(lambda: servicer.calls == 6)
        await client.close()
        await asyncio.wait(calls)
        assert {type(call.exception()) for call in calls} == {Unavailable}
        assert breaker.snapshot().times_opened == 0


async def test_the_callers_own_typed_errors_are_not_the_peers() -> None:
    """Requests that come from another hop fail with its errors: this one's breaker and limiter stay as they are."""
    breaker = CircuitBreaker(failure_threshold=2, timeout=60)

    async def batches(error: MeshError) -> AsyncIterator[list[str]]:
        yield ["a"]
        raise error

    async with serve([ScriptedEmbedding().capability()]) as running:
        async with AsyncEmbeddingServiceClient(running.target, circuit_breaker=breaker) as client:
            for error in (Unavailable("elsewhere"), Unavailable("elsewhere"), Overloaded("elsewhere", retry_after=9.0)):
                with pytest.raises(type(error), match="elsewhere"):
                    async for _ in client.embed_stream(batches(error)):
                        pass
            assert breaker.snapshot().times_opened == 0
            assert client.hop.limiter.limit == 256
