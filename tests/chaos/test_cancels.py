"""Thousands of clients that leave before they have their answer: nothing is kept for them, and nobody is blamed."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import pytest

from bench.load import post
from tests.chaos.bars import FULL, Bars, Measured
from tests.chaos.processes import EMBEDDING, LLM, Program, Replica, gateway_before, replicas
from tests.chaos.stand import Gateway, hop_status
from tests.chaos.vitals import scrape, usage

pytestmark = pytest.mark.chaos

CANCELS = 20_000 if FULL else 3_500
WARM_CANCELS = 4_000 if FULL else 1_500
"""Until here memory grows to what so much traffic needs: pools, caches, metrics' series."""
LANES = 12
"""Few enough that the gateway keeps up: what waits to be read is no leak."""
LONGEST_STAY_SECONDS = 0.06
LONGEST_STORM_SECONDS = 120.0 if FULL else 45.0
SETTLED_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """What is asked for, and by whom it would be answered.

    Attributes:
        fault: makes the worker slow enough to be left.
        request: a whole HTTP request for the gateway at a URL.
        noise: KiB for each client by which memory differs between two short runs of the same.
    """

    hop: str
    program: Program
    fault: str
    request: Callable[[str], bytes]
    noise: float


def _embedding(url: str) -> bytes:
    return post(url, "/v1/embeddings", {"model": "", "input": ["a red cat", "the blue dog ran", "far away"]})


def _chat(url: str) -> bytes:
    messages = [{"role": "user", "content": "50 0.02"}]
    return post(url, "/v1/chat/completions", {"model": "", "messages": messages, "stream": True})


STORMS = (
    # Three texts are about fifteen tokens: a batch of them takes fifteen milliseconds, and a queue forms.
    Storm(hop="embedding", program=EMBEDDING, fault="slow:0.001", request=_embedding, noise=0.6),
    Storm(hop="llm", program=LLM, fault="", request=_chat, noise=2.0),
)


@pytest.mark.slow
@pytest.mark.parametrize("storm", STORMS, ids=lambda storm: storm.hop)
async def test_a_storm_of_cancels_leaves_no_trace(measured: Measured, storm: Storm) -> None:
    """Every place is given back in the gateway and in the worker, memory stands, and the breaker never moved."""
    bars = Bars(f"cancel storm, {storm.hop}", measured)
    async with replicas(storm.program, 1) as (only,), gateway_before([only], storm.hop) as gateway:
        only.fault(storm.fault)
        pids = {"gateway": gateway.process.pid, "worker": only.worker.process.pid}
        await leave(gateway.url, storm.request(gateway.url), WARM_CANCELS)
        await settled(gateway, only, storm.hop)
        before = {name: usage(pid).rss_bytes for name, pid in pids.items()}
        done = await leave(gateway.url, storm.request(gateway.url), CANCELS)
        seconds = await settled(gateway, only, storm.hop)
        growth = {name: (usage(pid).rss_bytes - before[name]) / 1024 for name, pid in pids.items()}
        seen = (await scrape(f"{gateway.url}/metrics")).total("mesh_hop_calls_total", outcome="cancelled")
        only.fault("")
        async with gateway.client() as http:
            status = await hop_status(http, storm.hop)
            answers = [await is_served(gateway, storm) for _ in range(5)]
    bars.tell("left", done, "clients")
    bars.tell("of them and of the warm-up cancelled at the hop", seen, "calls")
    bars.at_most("every place given back after", seconds, "s", promise=SETTLED_SECONDS)
    for name in pids:
        bars.at_most(f"growth of the {name} for each", growth[name] / done, "KiB", promise=0.2, noisy=storm.noise)
    bars.hold()
    assert seen > (WARM_CANCELS + done) / 4, "too few were cancelled while something was done for them"
    assert status["breaker"]["times_opened"] == 0
    assert status["breaker"]["consecutive_failures"] == 0
    assert answers == [True] * len(answers)


async def leave(url: str, request: bytes, count: int) -> int:
    """Send ``request`` and leave a moment later, so many times; returns how many left within the time allowed."""
    parts = urlsplit(url)
    dice = random.Random(count)
    numbers = itertools.count()
    done = 0
    over_at = time.monotonic() + LONGEST_STORM_SECONDS

    async def lane() -> None:
        nonlocal done
        while next(numbers) < count and time.monotonic() < over_at:
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(request)
            await asyncio.sleep(dice.uniform(0.0, LONGEST_STAY_SECONDS))
            # Half of them with a reset, half with an orderly close in the middle of everything.
            writer.transport.abort() if dice.random() < 0.5 else writer.close()
            done += 1

    async with asyncio.TaskGroup() as running:
        for _ in range(LANES):
            running.create_task(lane())
    return done


async def settled(gateway: Gateway, only: Replica, hop: str) -> float:
    """Seconds until nothing is in flight, neither at the gateway nor in the worker, by the account of each."""
    began = time.monotonic()
    async with asyncio.timeout(10 * SETTLED_SECONDS):
        while True:
            at_hop = (await scrape(f"{gateway.url}/metrics")).total("mesh_hop_calls_in_flight", hop=hop)
            worker = await only.counts()
            kept = worker.total("mesh_rpc_calls_in_flight") + worker.total("mesh_llm_requests_running")
            if not at_hop and not kept and not worker.total("mesh_batch_queue_tokens"):
                return time.monotonic() - began
            await asyncio.sleep(0.05)


async def is_served(gateway: Gateway, storm: Storm) -> bool:
    """Whether a client that stays is answered."""
    path = "/v1/embeddings" if storm.hop == "embedding" else "/v1/completions"
    body = {"input": "a red cat"} if storm.hop == "embedding" else {"prompt": "3 0.01"}
    async with gateway.client() as http:
        return (await http.post(path, json={"model": "", **body})).status_code == httpx.codes.OK
