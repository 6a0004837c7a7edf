"""Three replicas behind one hop: load spreads, and the one that is ill, slow or not serving costs its callers nothing.

What each replica got is read from its own metrics, not from the gateway's.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from mesh.channel import SERVER_OPTIONS
from mesh.pb.embedding.v1.embedding_pb2_grpc import add_EmbeddingServiceServicer_to_server
from mesh.testing import ScriptedEmbedding
from ops.local.layout import CHECKOUT
from ops.local.topology import LOOPBACK
from tests.chaos.bars import FULL, Bars, Measured
from tests.chaos.processes import EMBEDDING, Program, Replica, gateway_before, replicas
from tests.chaos.stand import hop_status, running_gateway, until_serving
from tests.chaos.traffic import Traffic, failed, p99, slowest, traffic, wrong
from tests.chaos.vitals import scrape

pytestmark = pytest.mark.chaos

FLAKY = Program("embedding", EMBEDDING.service, (str(CHECKOUT / "tests/chaos/flaky_worker.py"),))
LANES = 12
LOAD_SECONDS = 3.0
FOUND_SECONDS = 2.0
"""After which a replica that always fails may cost no more than one call in a hundred."""
PATIENCE_SECONDS = 20.0
RETRIES_FLOOR = 10
"""As mesh.resilience.RetryBudget has it, in a window that is longer than this load."""
RESTLESS_MS = 500


async def test_load_spreads_over_all_that_are_well(measured: Measured) -> None:
    """Each of three gets about a third, with keep-alive connections and one gateway."""
    bars = Bars("three replicas, all well", measured)
    async with replicas(EMBEDDING, 3) as three, gateway_before(three) as gateway, gateway.client() as http:
        async with traffic(http, lanes=LANES) as seen:
            await asyncio.sleep(LOAD_SECONDS)
        shares = shares_of(await received(three))
    bars.tell("calls", len(seen.replies), "")
    bars.at_least("smallest share", min(shares), "", promise=0.25)
    bars.at_most("largest share", max(shares), "", promise=0.42)
    hold_all_right(bars, seen)


async def test_one_that_cannot_be_reached_for_its_errors_fails_no_call(measured: Measured) -> None:
    """It says SERVING and answers UNAVAILABLE each time: its calls go to the others, and it is soon left alone."""
    bars = Bars("one of three always unavailable", measured)
    async with replicas(FLAKY, 3) as three, gateway_before(three) as gateway, gateway.client() as http:
        async with traffic(http, lanes=LANES) as seen:
            three[0].fault("unavailable 1")
            await asyncio.sleep(FOUND_SECONDS)
            before = await received(three)
            await asyncio.sleep(LOAD_SECONDS)
            after = await received(three)
            status = await hop_status(http, "embedding")
    bars.tell("sent again elsewhere", status["retries"], "")
    bars.at_most("its share once it is found", shares_of(difference(after, before))[0], "", promise=0.01)
    hold_all_right(bars, seen)
    assert [each["ejected"] for each in status["endpoints"]] == [True, False, False]
    assert status["breaker"]["state"] == "closed", "one ill replica is no ill capability"


async def test_one_that_always_fails_is_left_alone_and_taken_back(measured: Measured) -> None:
    """Its failure may not be asked for twice; after two seconds hardly a call meets it; once it is well, it is back."""
    bars = Bars("one of three always fails", measured)
    async with replicas(FLAKY, 3) as three, gateway_before(three) as gateway, gateway.client() as http:
        async with traffic(http, lanes=LANES) as seen:
            three[0].fault("internal 1")
            found_at = time.monotonic() + FOUND_SECONDS
            await asyncio.sleep(FOUND_SECONDS)
            before = await received(three)
            await asyncio.sleep(LOAD_SECONDS)
            after = await received(three)
            healed_at = time.monotonic()
            three[0].fault("internal 0")
            back_at = await gets_calls(three[0], more_than=after[0] + 20)
    first, later = seen.begun(0.0, found_at), seen.begun(found_at, healed_at)
    bars.tell("failed before it was found", len(failed(first)), f"of {len(first)}")
    bars.at_most("error rate once it is found", len(failed(later)) / len(later), "", promise=0.01)
    bars.at_most("its share once it is found", shares_of(difference(after, before))[0], "", promise=0.01)
    bars.tell("takes load again after it is well", back_at - healed_at, "s")
    bars.hold()
    assert {reply.status for reply in failed(seen.replies)} <= {500}, "another failure than its own"
    assert not failed(seen.begun(healed_at + 0.5)), "it is well again"


async def test_one_that_does_not_serve_gets_nothing_until_it_does(measured: Measured) -> None:
    """Its own canary took it out: not one call meets it, none fails, and it is used within a second of serving."""
    bars = Bars("one of three NOT_SERVING", measured)
    # One failed canary makes NOT_SERVING; the second or the third, each so much later, finds it well.
    patient = {"EMBEDDING_CANARY_INTERVAL_SECONDS": "0.5", "EMBEDDING_CANARY_RETRY_SECONDS": "5"}
    async with replicas(EMBEDDING, 3, patient) as three, gateway_before(three) as gateway, gateway.client() as http:
        three[0].fault("fail")
        await three[0].says_not_serving()
        await asyncio.sleep(0.2)  # for the news to travel
        async with traffic(http, lanes=LANES) as seen:
            before = await received(three)
            await asyncio.sleep(LOAD_SECONDS)
            during = await received(three)
            status = await hop_status(http, "embedding")
            three[0].fault("healthy")
            serving_at = await three[0].says_serving()
            back_at = await gets_calls(three[0], more_than=during[0])
    bars.at_most("calls that it got", during[0] - before[0], "", promise=0)
    bars.at_most("takes load after it serves", back_at - serving_at, "s", promise=1.0, noisy=1.5)
    hold_all_right(bars, seen)
    assert [each["health"] for each in status["endpoints"]] == ["NOT_SERVING", "SERVING", "SERVING"]
    assert status["endpoints"][0]["reason_code"] == "CANARY_FAILED"


async def test_a_slow_one_gets_less(measured: Measured) -> None:
    """It takes fifty milliseconds for each text: calls go where fewer are in flight, and it still does what it can."""
    bars = Bars("one of three slow", measured)
    async with replicas(EMBEDDING, 3) as three, gateway_before(three) as gateway, gateway.client() as http:
        three[0].fault("slow:0.01")
        async with traffic(http, lanes=LANES) as seen:
            await asyncio.sleep(LOAD_SECONDS)
        shares = shares_of(await received(three))
    bars.at_most("its share", shares[0], "", promise=0.25)
    bars.at_least("its share, which is not nothing", shares[0], "", promise=0.001)
    bars.tell("p99", p99(seen.replies) * 1000, "ms")
    hold_all_right(bars, seen)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
async def test_retries_stay_within_their_budget(measured: Measured, share: float) -> None:
    """Of all replicas this share of calls fails by lot: they see at most a tenth more calls than clients made."""
    bars = Bars(f"all fail {share:.0%}", measured)
    async with replicas(FLAKY, 3) as three, gateway_before(three) as gateway, gateway.client() as http:
        async with traffic(http, lanes=LANES) as seen:
            for each in three:
                each.fault(f"unavailable {share}")
            await asyncio.sleep(LOAD_SECONDS)
        got = sum(await received(three))
        counts = await scrape(f"{gateway.url}/metrics")
        status = await hop_status(http, "embedding")
    offered = counts.total("mesh_http_requests_total", method="POST")
    first_attempts = counts.total("mesh_hop_calls_total", method="Embed")
    bars.tell("offered", offered, "calls")
    bars.tell("failed", len(failed(seen.replies)) / len(seen.replies), "")
    # An open breaker lets so few calls through that the budget's floor is more than a tenth of them; and a tenth is a
    # number of whole calls.
    allowed = max(RETRIES_FLOOR, math.ceil(0.1 * first_attempts))
    bars.at_most("sent again elsewhere, of what the budget allows", status["retries"] / allowed, "", promise=1.0)
    bars.at_most("calls that the replicas got over those offered", (got - 1) / offered, "", promise=1.1)
    bars.at_most("slowest", slowest(seen.replies), "s", promise=1.0, noisy=2.0)
    bars.at_most("wrong answers and untyped errors", len(wrong(seen.replies)), "", promise=0)
    bars.hold()
    assert status["retries"] > 0, "nothing was sent again, so no budget was needed"
    if share < 0.1:
        assert len(failed(seen.replies)) <= 0.02 * len(seen.replies), "few failures fit into the budget"


async def test_connections_that_end_all_the_time_fail_no_call(measured: Measured) -> None:
    """Workers send their clients away twice a second, and each HTTP call comes on a new connection: nobody notices."""
    bars = Bars("connection churn", measured)
    async with restless_server() as first, restless_server() as second:
        async with running_gateway({"embedding": f"{first},{second}"}) as gateway:
            await until_serving(gateway, "embedding")
            once = httpx.Limits(max_keepalive_connections=0)
            async with httpx.AsyncClient(base_url=gateway.url, limits=once, timeout=30, trust_env=False) as http:
                async with traffic(http, lanes=LANES) as seen:
                    await asyncio.sleep(4 * LOAD_SECONDS if FULL else LOAD_SECONDS)
                status = await hop_status(http, "embedding")
    bars.at_least("calls", len(seen.replies), "", promise=300)
    bars.tell("sent again elsewhere", status["retries"], "")
    bars.at_most("times that the breaker opened", status["breaker"]["times_opened"], "", promise=0)
    hold_all_right(bars, seen)


@asynccontextmanager
async def restless_server() -> AsyncIterator[str]:
    """A server whose connections end after half a second, as they do after minutes in a worker; yields its address."""
    server = grpc.aio.server(options=[*SERVER_OPTIONS, ("grpc.max_connection_age_ms", RESTLESS_MS)])
    add_EmbeddingServiceServicer_to_server(ScriptedEmbedding(), server)
    said = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(said, server)
    await said.set(EMBEDDING.service, health_pb2.HealthCheckResponse.SERVING)
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    await server.start()
    try:
        yield f"{LOOPBACK}:{port}"
    finally:
        await server.stop(0)


def hold_all_right(bars: Bars, seen: Traffic) -> None:
    """Every call was served with its own vector."""
    bars.tell("slowest", slowest(seen.replies) * 1000, "ms")
    bars.at_most("failed", len(failed(seen.replies)), "", promise=0)
    bars.at_most("wrong answers", len(wrong(seen.replies)), "", promise=0)
    bars.hold()


async def received(of: Sequence[Replica]) -> list[float]:
    """How many calls each has finished, well or ill."""
    counts = await asyncio.gather(*(each.counts() for each in of))
    return [count.total("mesh_rpc_calls_total", method="Embed") for count in counts]


def difference(after: Sequence[float], before: Sequence[float]) -> list[float]:
    """What came between two looks."""
    return [later - earlier for later, earlier in zip(after, before, strict=True)]


def shares_of(counts: Sequence[float]) -> list[float]:
    """Each one's part of them all."""
    return [count / sum(counts) for count in counts]


async def gets_calls(replica: Replica, *, more_than: float) -> float:
    """The moment at which it has got so many calls."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await received([replica]))[0] <= more_than:
            await asyncio.sleep(0.02)
    return time.monotonic()
