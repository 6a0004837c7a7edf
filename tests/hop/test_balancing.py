"""Several endpoints of one hop: who gets the calls, who gets none, and where a failed call goes next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from mesh.channel import address_of
from mesh.clients.embedding import AsyncEmbeddingServiceClient
from mesh.clients.llm import AsyncLLMServiceClient
from mesh.deadline import Deadline
from mesh.endpoint import NOT_SERVING, SERVING, UNREACHABLE
from mesh.errors import DeadlineExceeded, Internal, InvalidRequest, MeshError, Overloaded, Unavailable
from mesh.hop import HopSettings
from mesh.testing import ScriptedEmbedding, serve
from mesh.testing.embedding import HANG, Step, vector_of
from mesh.testing.server import RunningWorker
from mesh.transport import AioTransport


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for a state that another task brings about."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


class Fleet:
    """Scripted workers and one client that knows them all."""

    def __init__(
        self, servicers: list[ScriptedEmbedding], workers: list[RunningWorker], client: AsyncEmbeddingServiceClient
    ) -> None:
        self.servicers = servicers
        self.workers = workers
        self.client = client

    @property
    def calls(self) -> list[int]:
        """How many calls each worker saw."""
        return [servicer.calls for servicer in self.servicers]

    async def ask(self, count: int, at_once: int = 1) -> list[MeshError]:
        """Make calls, check every answer's content, and return the failures."""
        failures: list[MeshError] = []

        async def one(number: int) -> None:
            text = "a" * (number % 50 + 1)
            try:
                found = await self.client.generate_embeddings([text])
            except MeshError as error:
                failures.append(error)
            else:
                assert found.tolist() == [list(vector_of(text))]

        for start in range(0, count, at_once):
            await asyncio.gather(*(one(number) for number in range(start, min(count, start + at_once))))
        return failures


@asynccontextmanager
async def fleet(*scripts: list[Step], **settings: float) -> AsyncIterator[Fleet]:
    """A worker per script, all of them known to serve."""
    async with AsyncExitStack() as stack:
        servicers = [ScriptedEmbedding(script) for script in scripts]
        workers = [await stack.enter_async_context(serve([each.capability()])) for each in servicers]
        targets = ",".join(worker.target for worker in workers)
        client = AsyncEmbeddingServiceClient(targets, hop=HopSettings.model_validate(settings))
        await stack.enter_async_context(client)
        await until(lambda: all(each.health == SERVING for each in client.hop.status().endpoints))
        yield Fleet(servicers, workers, client)


async def test_calls_spread_evenly_over_equals() -> None:
    """One after the other or many at once: each of three gets a third."""
    async with fleet([], [], []) as three:
        assert await three.ask(60) == []
        assert three.calls == [20, 20, 20]
        assert await three.ask(120, at_once=30) == []
        assert all(50 <= calls <= 70 for calls in three.calls)


async def test_a_slow_endpoint_gets_less() -> None:
    """Calls in flight decide: who answers slowly has more of them, and so gets fewer new ones."""
    async with fleet([], [HANG] * 4) as two:
        stuck = [asyncio.create_task(two.client.embed(["x"], deadline=Deadline.after(20))) for _ in range(8)]
        await until(lambda: two.servicers[1].calls == 4)
        before = two.calls
        assert await two.ask(40) == []
        assert two.calls[1] == before[1]
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)


async def test_a_busy_endpoints_call_goes_elsewhere_at_once() -> None:
    """A refusal for want of room costs the caller nothing while another endpoint has some."""
    busy: list[Step] = [Overloaded("full", retry_after=5.0)] * 100
    async with fleet(busy, []) as two:
        assert await two.ask(50) == []
        assert two.calls[0] <= 2
        assert two.client.hop.status().breaker.times_opened == 0
        assert two.client.hop.status().retries == two.calls[0]


async def test_an_endpoint_that_always_fails_gets_nothing_but_probes() -> None:
    """Its breaker ejects it; what fails with a bug is not repeated, so a handful of callers see it, and no more."""
    async with fleet([Internal("broken")] * 1000, [], [], breaker_timeout_seconds=60.0) as three:
        failures = await three.ask(600)
        assert len(failures) <= 6
        assert {type(each) for each in failures} == {Internal}
        assert [each.ejected for each in three.client.hop.status().endpoints] == [True, False, False]
        assert three.client.hop.status().breaker.times_opened == 0


async def test_an_unavailable_endpoints_calls_are_repeated_elsewhere_and_nobody_notices() -> None:
    """Embedding twice does no harm."""
    async with fleet([Unavailable("gone")] * 1000, []) as two:
        assert await two.ask(200) == []
        assert two.calls[0] <= 8


async def test_invalid_requests_and_cancelled_calls_eject_nobody() -> None:
    """What clients do says nothing about the peers: with gRPC's core this emptied the hop."""
    bad: list[Step] = [InvalidRequest("no")] * 100
    async with fleet(bad, list(bad), list(bad)) as three:
        assert len(await three.ask(300, at_once=20)) == 300
        assert not any(each.ejected for each in three.client.hop.status().endpoints)
    async with fleet([HANG] * 100, [HANG] * 100, [HANG] * 100) as three:
        tasks = [asyncio.create_task(three.client.embed(["x"])) for _ in range(200)]
        await until(lambda: sum(three.calls) == 200)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not any(each.ejected for each in three.client.hop.status().endpoints)
        assert sum(each.in_flight for each in three.client.hop.status().endpoints) == 0


async def test_when_all_fail_the_peers_see_at_most_a_tenth_more() -> None:
    """Retries have a budget: a struggling fleet is not finished off by its own clients."""
    halves: list[list[Step]] = [[Unavailable("flaky"), None] * 2000 for _ in range(3)]
    async with fleet(*halves, failure_rate=1.0, failure_threshold=1000) as three:
        await three.ask(1500, at_once=5)
        assert sum(three.calls) <= 1.1 * 1500


async def test_an_endpoint_that_says_not_serving_gets_no_calls() -> None:
    """Draining is announced before it begins, so that nobody is turned away."""
    async with fleet([], []) as two:
        await two.ask(10)
        before = two.calls[0]
        await two.workers[0].worker._readiness.drain()
        await until(lambda: two.client.hop.status().endpoints[0].health == NOT_SERVING)
        assert await two.ask(50) == []
        assert two.calls[0] == before


async def test_a_lost_endpoint_comes_back_within_a_second_of_serving() -> None:
    """And takes its share again."""
    async with fleet([], []) as two:
        port = two.workers[0].worker.port
        await two.workers[0].worker.stop()
        await until(lambda: two.client.hop.status().endpoints[0].health == UNREACHABLE)
        assert await two.ask(50) == []
        await asyncio.sleep(2.0)  # long enough for the reconnecting to have backed off as far as it does
        again = ScriptedEmbedding()
        async with serve([again.capability()], port=port):
            started = time.monotonic()
            await until(lambda: two.client.hop.status().endpoints[0].health == SERVING)
            assert time.monotonic() - started <= 1.0
            assert await two.ask(40) == []
            assert again.calls == 20


async def test_the_only_endpoints_cut_connection_is_not_its_death() -> None:
    """A call whose connection breaks is sent once more where the peer is still there."""
    servicer = ScriptedEmbedding()
    async with serve([servicer.capability()]) as running:
        proxy = _Cutter(running.worker.port)
        async with proxy.running() as target, AsyncEmbeddingServiceClient(target) as client:
            await client.embed(["a"])
            proxy.cut()
            assert (await client.embed(["a"])).rows == 1
            assert client.hop.breaker.snapshot().times_opened == 0


async def test_a_dead_only_endpoint_is_refused_within_a_tenth_of_a_second() -> None:
    """Every call of a hop that has lost its last worker fails typed and at once, with a time to come back."""
    async with fleet([]) as one:
        await one.ask(5)
        await one.workers[0].worker.stop()
        slowest = 0.0
        for _ in range(20):
            started = time.monotonic()
            with pytest.raises(Unavailable) as caught:
                await one.client.embed(["a"])
            slowest = max(slowest, time.monotonic() - started)
            assert caught.value.retry_after is not None
        assert slowest < 0.1


async def test_a_generation_is_not_repeated_but_for_the_workers_own_refusal() -> None:
    """A second generation would be another text: only a worker that did not begin is passed over."""
    from llm_service.servicer import LlmServicer
    from llm_service.testing import ScriptedEngine
    from llm_service.writer import Writer
    from mesh.clients.llm import Generation
    from mesh.serving import Capability

    engines = [ScriptedEngine([Unavailable("lost", reason="ENGINE_LOST", retry_after=1.0)]), ScriptedEngine()]
    async with AsyncExitStack() as stack:
        targets = []
        for engine in engines:
            writer = Writer(engine)
            servicer = LlmServicer(writer, default_deadline_seconds=5.0, max_request_bytes=1 << 20)
            capability = Capability(service="llm.v1.LlmService", register=servicer.register, start=writer.start)
            running = await stack.enter_async_context(serve([capability]))
            targets.append(running.target)
        client = await stack.enter_async_context(AsyncLLMServiceClient(",".join(targets)))
        await until(lambda: all(each.health == SERVING for each in client.hop.status().endpoints))
        outcomes = set()
        for _ in range(4):
            try:
                outcomes.add((await client.complete(Generation(prompt="x"))).text)
            except Unavailable as error:
                outcomes.add(error.reason)
        assert outcomes == {"one two", "ENGINE_LOST"}
        assert client.hop.status().retries == 0
        engines[0].script[0] = replace_reason(engines[0].script[0], "DRAINING")
        for _ in range(4):
            assert (await client.complete(Generation(prompt="x"))).text == "one two"


def replace_reason(error: object, reason: str) -> Unavailable:
    """The same refusal for another reason."""
    assert isinstance(error, Unavailable)
    return Unavailable(error.message, reason=reason, retry_after=error.retry_after)


class _MovingName(AioTransport):
    """A transport whose names lead where a test says."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.broken = False

    async def look_up(self, host: str, port: int) -> tuple[str, ...]:
        """The present addresses of every name."""
        if self.broken or not self.ports:
            raise OSError(2, "no such name")
        return tuple(address_of("127.0.0.1", each) for each in self.ports)


async def test_a_name_that_moves_is_followed() -> None:
    """A worker behind a name is used at its new address within a second of serving there."""
    names = _MovingName()
    async with AsyncExitStack() as stack:
        first, second = ScriptedEmbedding(), ScriptedEmbedding()
        one = await stack.enter_async_context(serve([first.capability()]))
        names.ports = [one.worker.port]
        client = await stack.enter_async_context(AsyncEmbeddingServiceClient("dns:///worker:50051", transport=names))
        await client.embed(["a"])
        await one.worker.stop()
        await until(lambda: not client.hop.status().serving)
        two = await stack.enter_async_context(serve([second.capability()]))
        names.ports = [two.worker.port]
        started = time.monotonic()
        await until(lambda: client.hop.status().serving)
        assert time.monotonic() - started <= 1.0
        await client.embed(["a"])
        assert [each.address for each in client.hop.status().endpoints] == [f"127.0.0.1:{two.worker.port}"]
        names.broken = True  # a resolver that is down takes nothing away
        await asyncio.sleep(1.2)
        await client.embed(["a"])
    assert (first.calls, second.calls) == (1, 2)


async def test_a_name_that_is_not_known_yet_is_found_later() -> None:
    """The first calls are refused typed, with the name in the status; the hop comes by itself when the name does."""
    names = _MovingName()
    async with AsyncEmbeddingServiceClient("worker:50051", transport=names) as client:
        with pytest.raises(Unavailable):
            await client.embed(["a"])
        assert [(each.endpoint, each.reason_code) for each in client.hop.status().endpoints] == [
            ("worker:50051", "NAME_NOT_FOUND")
        ]
        async with serve([ScriptedEmbedding().capability()]) as running:
            names.ports = [running.worker.port]
            await until(lambda: client.hop.status().serving, 1.5)
            assert (await client.embed(["a"])).rows == 1


async def test_all_addresses_of_a_name_share_the_load() -> None:
    """As those of a list do."""
    names = _MovingName()
    servicers = [ScriptedEmbedding() for _ in range(3)]
    async with AsyncExitStack() as stack:
        for servicer in servicers:
            running = await stack.enter_async_context(serve([servicer.capability()]))
            names.ports.append(running.worker.port)
        client = await stack.enter_async_context(AsyncEmbeddingServiceClient("worker:50051", transport=names))
        await until(lambda: [each.health for each in client.hop.status().endpoints] == [SERVING] * 3)
        for _ in range(30):
            await client.embed(["a"])
    assert [servicer.calls for servicer in servicers] == [10, 10, 10]


class _Cutter:
    """A TCP proxy on loopback whose connections a test can reset."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Its address while the block runs."""
        server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, back]
        await asyncio.gather(self._copy(reader, back), self._copy(there, writer))

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


async def test_info_neither_ejects_an_endpoint_nor_takes_it_back() -> None:
    """A worker that tells its model while its engine fails is found by its work alone."""
    async with fleet([Internal("broken")] * 1000, [], breaker_timeout_seconds=60.0) as two:
        for _ in range(60):
            with suppress(Internal):
                await two.client.embed(["x"])
            await two.client.info()
        assert [each.ejected for each in two.client.hop.status().endpoints] == [True, False]
        assert two.client.hop.status().breaker.times_opened == 0


async def test_when_all_are_busy_the_budget_is_kept_for_what_is_lost() -> None:
    """A second attempt at a peer that just said it is full would be in vain."""
    busy: list[Step] = [Overloaded("full", retry_after=5.0)] * 200
    async with fleet(busy, list(busy)) as two:
        assert len(await two.ask(100)) == 100
        assert two.client.hop.status().retries <= 1


async def test_a_caller_in_a_hurry_starves_no_endpoint() -> None:
    """What is too late for one is in time for others."""
    late: Step = Overloaded("no time", reason="QUEUE_LONGER_THAN_DEADLINE", retry_after=5.0)
    async with fleet([late], [late]) as two:
        await two.ask(2)
        assert await two.ask(40) == []
        assert min(two.calls) >= 18


async def test_questions_between_do_not_put_the_turns_out_of_step() -> None:
    """Info before every call: both endpoints still work alike."""
    async with fleet([], []) as two:
        for _ in range(30):
            await two.client.info()
            await two.client.embed(["a"])
        assert two.calls == [15, 15]


class _HangingName(AioTransport):
    """A transport whose resolver hangs until it is released, or cannot encode the name."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.released = asyncio.Event()

    async def look_up(self, host: str, port: int) -> tuple[str, ...]:
        """Waits, or fails."""
        if self.error is not None:
            raise self.error
        await self.released.wait()
        return ()


@pytest.mark.parametrize("error", [None, UnicodeError("label empty or too long")], ids=["hangs", "impossible"])
async def test_a_name_that_cannot_be_looked_up_holds_up_no_call_to_an_address(error: Exception | None) -> None:
    """Whoever serves is used at once."""
    async with serve([ScriptedEmbedding().capability()]) as running:
        client = AsyncEmbeddingServiceClient([running.target, "worker:5"], transport=_HangingName(error))
        async with client:
            await until(lambda: client.hop.status().serving)
            started = time.monotonic()
            await client.embed(["a"], deadline=Deadline.after(2.0))
            assert time.monotonic() - started < 0.5


async def test_callers_who_cannot_wait_for_the_first_look_up_say_nothing_about_the_peer() -> None:
    """Their time is up; no breaker opens."""
    async with AsyncEmbeddingServiceClient("worker:5", transport=_HangingName()) as client:
        for _ in range(6):
            with pytest.raises(DeadlineExceeded):
                await client.embed(["a"], deadline=Deadline.after(0.02))
        assert client.hop.status().breaker.times_opened == 0


class _StumblingTransport(AioTransport):
    """A transport on which the first streams cannot be begun."""

    stumbles = 3

    async def stream(
        self, method: object, request: object, *, timeout: float, metadata: object
    ) -> AsyncGenerator[object, None]:
        """Fails at first in a way that nobody foresaw."""
        if self.stumbles:
            self.stumbles -= 1
            raise RuntimeError("can't start new thread")
        async for reply in super().stream(method, request, timeout=timeout, metadata=()):
            yield reply


async def test_a_watch_begins_again_whatever_ends_it() -> None:
    """For ever means for ever."""
    async with serve([ScriptedEmbedding().capability()]) as running:
        async with AsyncEmbeddingServiceClient(running.target, transport=_StumblingTransport()) as client:
            await until(lambda: client.hop.status().serving)
