"""A network that goes silent, loses, delays, narrows and resets.

Errors are typed and come in bounded time, answers are right, and what heals is used again within seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from mesh.clients import AsyncEmbeddingServiceClient
from mesh.errors import CircuitOpen
from mesh.hop import HopSettings
from mesh.resilience import BreakerState
from ops.local.topology import LOOPBACK
from tests.chaos import netns
from tests.chaos.bars import FULL, Bars, Measured
from tests.chaos.faults_proxy import BLACK_HOLE, Faults, FaultsProxy, Way, delayed
from tests.chaos.stand import Gateway, Worker, hop_status, running_gateway, running_worker, until_serving
from tests.chaos.traffic import Traffic, failed, p99, slowest, traffic, wrong

pytestmark = pytest.mark.chaos

SERVICE = "embedding.v1.EmbeddingService"
DETECTED_SECONDS = 10.0
"""A peer that nothing is heard of any more is given up by then, and so is every call to it."""
HEALED_SECONDS = 3.0
SILENT_SECONDS = 13.0 if FULL else 9.0
"""Longer than keepalive takes (7 s), so that the silence outlasts every connection."""
LOSSY_SECONDS = 20.0 if FULL else 5.0

WHY_NO_NAMESPACES = netns.why_not()
needs_namespaces = pytest.mark.skipif(bool(WHY_NO_NAMESPACES), reason=WHY_NO_NAMESPACES)


@asynccontextmanager
async def quick_worker(host: str = LOOPBACK, inside: Sequence[str] = ()) -> AsyncIterator[Worker]:
    """An embedding worker without a real model."""
    module = "embedding_service.testing"
    async with running_worker("embedding", SERVICE, module=module, host=host, inside=inside) as worker:
        yield worker


@asynccontextmanager
async def gateway_before(target: str) -> AsyncIterator[Gateway]:
    """A gateway whose embedding hop leads to ``target`` and serves."""
    async with running_gateway({"embedding": target}) as gateway:
        await until_serving(gateway, "embedding")
        yield gateway


@dataclass(frozen=True, slots=True)
class Behind:
    """A gateway, and its worker behind a network that can be hurt."""

    gateway: Gateway
    proxy: FaultsProxy


@pytest.fixture
async def behind() -> AsyncIterator[Behind]:
    """A gateway that reaches its worker through a proxy."""
    async with (
        quick_worker() as worker,
        FaultsProxy.before(worker.port) as proxy,
        gateway_before(proxy.target) as gateway,
    ):
        yield Behind(gateway, proxy)


@dataclass(frozen=True, slots=True)
class Inside:
    """A gateway, and its worker in a namespace of its own."""

    gateway: Gateway
    network: netns.Namespace


@pytest.fixture
async def inside() -> AsyncIterator[Inside]:
    """A gateway that reaches its worker over a virtual link."""
    with netns.namespace() as network:
        async with (
            quick_worker(host=network.address, inside=network.inside(())) as worker,
            gateway_before(worker.target) as gateway,
        ):
            yield Inside(gateway, network)


Change = Callable[[], Awaitable[None]]


async def partition(gateway: Gateway, bars: Bars, *, hurt: Change, heal: Change) -> None:
    """Let traffic meet a silence that outlasts detection, and judge what it saw."""
    async with gateway.client() as http, traffic(http) as seen:
        await asyncio.sleep(1.0)
        await hurt()
        hurt_at = time.monotonic()
        await asyncio.sleep(SILENT_SECONDS)
        status = await hop_status(http, "embedding")
        healed_at = time.monotonic()
        await heal()
        await asyncio.sleep(HEALED_SECONDS + 2.0)
    caught = seen.under_way(hurt_at + 1.0)  # a second later every lane waits for an answer that cannot come
    assert caught, "the silence hit no request, so nothing was proved"
    assert failed(caught) == caught
    later = [reply for reply in seen.begun(max(reply.ended for reply in caught), healed_at) if reply.ended < healed_at]
    assert failed(later) == later
    bars.at_most("calls caught by the silence ended after", slowest(caught), "s", promise=DETECTED_SECONDS)
    bars.at_most("slowest of all", slowest(seen.begun(hurt_at)), "s", promise=DETECTED_SECONDS)
    bars.at_most("refusals once it was known, p99", p99(later) * 1000, "ms", promise=100, noisy=300)
    assert not status["serving"]
    judge_healing(bars, seen, healed_at)


def judge_healing(bars: Bars, seen: Traffic, healed_at: float) -> None:
    """What followed, and that nothing was ever wrong."""
    bars.at_most("first answer after healing", seen.first_served_after(healed_at), "s", promise=HEALED_SECONDS)
    bars.at_most("last failure after healing", seen.last_failed_after(healed_at), "s", promise=HEALED_SECONDS)
    judge_answers(bars, seen)
    bars.hold()


def judge_answers(bars: Bars, seen: Traffic) -> None:
    """No wrong answer and no untyped error, ever."""
    for (status, code), number in Counter((reply.status, reply.code) for reply in seen.replies).items():
        bars.tell(f"answers {status} {code}".rstrip(), number, "")
    bars.at_most("wrong answers or untyped errors", len(wrong(seen.replies)), "", promise=0)


SILENCES = {
    "both ways": BLACK_HOLE,
    "to the worker": Faults(silent=frozenset({Way.TO_SERVER})),
    "back": Faults(silent=frozenset({Way.TO_CLIENT})),
}


@pytest.mark.slow
@pytest.mark.parametrize("silence", SILENCES if FULL else ["both ways"])
async def test_a_silent_connection_is_given_up_and_used_again(behind: Behind, measured: Measured, silence: str) -> None:
    """Bytes that arrive nowhere, both ways or one way: typed errors in bounded time, and back soon after."""
    await partition(
        behind.gateway,
        Bars(f"silence {silence}", measured),
        hurt=lambda: behind.proxy.become(SILENCES[silence]),
        heal=behind.proxy.heal,
    )


async def test_calls_on_reset_connections_end_at_once(behind: Behind, measured: Measured) -> None:
    """Ten resets in a row: what was under way is asked again or ends typed, and nothing waits."""
    bars = Bars("resets", measured)
    async with behind.gateway.client() as http, traffic(http) as seen:
        await asyncio.sleep(0.5)
        broken = 0
        for _ in range(10):
            broken += behind.proxy.reset()
            await asyncio.sleep(0.2)
        over_at = time.monotonic()
        await asyncio.sleep(HEALED_SECONDS + 0.5)
    assert broken >= 5
    bars.at_most("slowest of all", slowest(seen.replies), "s", promise=1.0, noisy=2.0)
    bars.at_most("share failed while resets went on", _share_failed(seen, over_at), "", promise=0.5, noisy=0.7)
    judge_healing(bars, seen, over_at)


async def test_a_share_of_resets_at_random_hurts_no_answer(behind: Behind, measured: Measured) -> None:
    """Half of the connections, again and again, at uneven moments."""
    bars = Bars("half of the connections reset", measured)
    async with behind.gateway.client() as http, traffic(http) as seen:
        for number in range(15):
            behind.proxy.reset(0.5)
            await asyncio.sleep(0.05 + 0.03 * (number % 5))
        over_at = time.monotonic()
        await asyncio.sleep(HEALED_SECONDS + 0.5)
    bars.at_most("slowest of all", slowest(seen.replies), "s", promise=1.0, noisy=2.0)
    judge_healing(bars, seen, over_at)


def _share_failed(seen: Traffic, until: float) -> float:
    replies = seen.begun(0.0, until)
    return len(failed(replies)) / len(replies)


async def test_a_port_that_refuses_is_told_at_once(behind: Behind, measured: Measured) -> None:
    """No connection can be made: typed errors without a wait, and back soon after."""
    bars = Bars("refusing port", measured)
    async with behind.gateway.client() as http, traffic(http) as seen:
        await asyncio.sleep(0.5)
        await behind.proxy.become(Faults(refuse=True))
        behind.proxy.reset()
        await asyncio.sleep(3.0)
        healed_at = time.monotonic()
        await behind.proxy.heal()
        await asyncio.sleep(HEALED_SECONDS + 0.5)
    assert failed(seen.replies)
    bars.at_most("slowest failure", slowest(failed(seen.replies)), "s", promise=0.1, noisy=0.5)
    judge_healing(bars, seen, healed_at)


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.5] if FULL else [0.05, 0.5])
async def test_a_delay_hurts_no_answer(behind: Behind, measured: Measured, seconds: float) -> None:
    """Half a second more on every way, in all calls: slower and right."""
    bars = Bars(f"{seconds * 1000:.0f} ms later", measured)
    await behind.proxy.become(delayed(seconds / 2))
    async with behind.gateway.client() as http, traffic(http) as seen:
        await asyncio.sleep(3.0)
    assert min(reply.seconds for reply in seen.replies) >= seconds
    bars.at_most("p99 above the delay", (p99(seen.replies) - seconds) * 1000, "ms", promise=100, noisy=500)
    bars.at_most("failed", len(failed(seen.replies)), "", promise=0)
    judge_answers(bars, seen)
    bars.hold()


async def test_a_narrow_pipe_hurts_no_answer(behind: Behind, measured: Measured) -> None:
    """3 kB/s in each direction: slower and right."""
    bars = Bars("3 kB/s", measured)
    await behind.proxy.become(Faults(bytes_per_second=3000))
    async with behind.gateway.client() as http, traffic(http, lanes=4) as seen:
        await asyncio.sleep(3.0)
    bars.at_least("p99", p99(seen.replies) * 1000, "ms", promise=100)  # or the pipe was not narrow
    bars.at_most("failed", len(failed(seen.replies)), "", promise=0)
    judge_answers(bars, seen)
    bars.hold()


async def test_slow_calls_open_their_own_breaker_and_no_other(measured: Measured) -> None:
    """A peer behind a slow network is left alone within one window; the same peer's other hop keeps its pace."""
    bars = Bars("slow calls", measured)
    settings = HopSettings(slow_call_seconds=0.2, minimum_calls=10, window_seconds=5.0)
    async with (
        quick_worker() as worker,
        FaultsProxy.before(worker.port) as proxy,
        AsyncEmbeddingServiceClient(proxy.target, hop=settings) as hurt,
        AsyncEmbeddingServiceClient(worker.target, hop=settings) as well,
    ):
        for client in (hurt, well):
            await client.generate_embeddings(["far away"])
        await proxy.become(delayed(0.3))
        began = time.monotonic()
        opened_after, paces = float("nan"), []
        while time.monotonic() - began < settings.window_seconds and hurt.hop.breaker.snapshot().times_opened == 0:
            calls = [asyncio.create_task(hurt.generate_embeddings(["far away"])) for _ in range(4)]
            sent = time.monotonic()
            await well.generate_embeddings(["far away"])
            paces.append(time.monotonic() - sent)
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                assert not isinstance(outcome, BaseException) or isinstance(outcome, CircuitOpen), outcome
            opened_after = time.monotonic() - began
        assert hurt.hop.breaker.snapshot().times_opened == 1
        refused_at = time.monotonic()
        with pytest.raises(CircuitOpen):
            await hurt.generate_embeddings(["far away"])
        bars.at_most("refusal", (time.monotonic() - refused_at) * 1000, "ms", promise=10, noisy=100)
        assert well.hop.breaker.snapshot().state is BreakerState.CLOSED
    bars.at_most("opened after", opened_after, "s", promise=settings.window_seconds)
    bars.at_most("slowest call of the other hop", max(paces) * 1000, "ms", promise=50, noisy=200)
    bars.hold()


DROPS = {"both ways": (netns.Way.IN, netns.Way.OUT), "to the worker": (netns.Way.IN,), "back": (netns.Way.OUT,)}


@needs_namespaces
@pytest.mark.slow
@pytest.mark.parametrize("ways", DROPS if FULL else ["both ways", "to the worker"])
async def test_a_partition_is_found_and_ends_with_its_healing(inside: Inside, measured: Measured, ways: str) -> None:
    """Packets that arrive nowhere, both ways or one way: typed errors in bounded time, and back soon after."""

    async def hurt() -> None:
        inside.network.drop(*DROPS[ways])

    async def heal() -> None:
        assert inside.network.dropped_packets() > 0
        inside.network.heal()

    await partition(inside.gateway, Bars(f"packets dropped, {ways}", measured), hurt=hurt, heal=heal)


@needs_namespaces
@pytest.mark.slow
@pytest.mark.parametrize("share", [0.01, 0.05, 0.30] if FULL else [0.01, 0.30])
async def test_lost_packets_cost_time_and_no_answer(inside: Inside, measured: Measured, share: float) -> None:
    """TCP repairs losses. At 1 % nothing fails and no breaker opens; at 30 % what fails is typed and bounded."""
    bars = Bars(f"{share:.0%} of packets lost", measured)
    async with inside.gateway.client() as http, traffic(http) as seen:
        await asyncio.sleep(0.5)
        inside.network.lose(share)
        await asyncio.sleep(LOSSY_SECONDS)
        lost = inside.network.dropped_packets()
        status = await hop_status(http, "embedding")
        healed_at = time.monotonic()
        inside.network.heal()
        await asyncio.sleep(HEALED_SECONDS + 1.0)
    during = seen.begun(0.0, healed_at)
    assert lost > 0
    bars.tell("packets lost", lost, "")
    bars.tell("requests", len(during), "")
    bars.tell("p50", sorted(reply.seconds for reply in during)[len(during) // 2] * 1000, "ms")
    bars.tell("p99", p99(during) * 1000, "ms")
    bars.tell("share failed", len(failed(during)) / len(during), "")
    bars.at_most("slowest of all", slowest(during), "s", promise=DETECTED_SECONDS)
    if share <= 0.01:
        bars.at_most("failed", len(failed(during)), "", promise=0)
        bars.at_most("times that the breaker opened", status["breaker"]["times_opened"], "", promise=0)
    judge_healing(bars, seen, healed_at)
