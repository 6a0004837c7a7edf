"""Containers that are killed, paused, cut off and starved under load: what callers see, and how soon it is over."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest

from ops.docker.engine import containers
from tests.chaos.bars import Bars, Measured
from tests.chaos.stand import hop_status
from tests.chaos.traffic import Traffic, failed, p99, slowest, wrong
from tests.containers.requests import KNOCKS, Knock, asking
from tests.containers.stack import NETWORK, WORKERS, Stack, docker, python_in, wait_for

pytestmark = [pytest.mark.containers, pytest.mark.slow]

LANES = 4
DETECTED_SECONDS = 10.0
"""A peer that nothing is heard of any more is given up by then, and so is every call to it."""
LOADED_SECONDS = 150.0
"""A worker that was killed loads its model anew, on a machine that may be busy."""
BACK_SECONDS = 2.0
STILL_TRIED_SECONDS = 0.5
"""After its connection is gone, a sole endpoint still gets calls: perhaps only the connection was cut. Of one that is
paused or cut off each of them waits a second, for one attempt to connect, until the breaker opens."""
HURT_SECONDS = 2.5
"""How long it stays hurt once that is known."""


@dataclass(frozen=True)
class Harm:
    """Something done to a container, and how it is taken back.

    Attributes:
        silent: the peer says nothing any more, so that it takes a while to be known.
        back: the promise for the first answer after it serves again, or after the harm was taken back.
    """

    hurt: Callable[[str], str]
    heal: Callable[[str], str]
    silent: bool
    back: float


HARMS = {
    "killed": Harm(lambda name: docker("kill", name), lambda name: docker("start", name), silent=False, back=1.0),
    "paused": Harm(
        lambda name: docker("pause", name), lambda name: docker("unpause", name), silent=True, back=BACK_SECONDS
    ),
    "cut off": Harm(
        lambda name: docker("network", "disconnect", NETWORK, name),
        lambda name: docker("network", "connect", "--alias", name, NETWORK, name),
        silent=True,
        back=BACK_SECONDS,
    ),
}


@asynccontextmanager
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the gateway, with a connection for every caller."""
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=stack.url, limits=limits, trust_env=False, timeout=60.0) as http:
        yield http


def bystander(victim: Knock) -> Knock:
    """A worker that nothing is done to."""
    return KNOCKS["embedding-services" if victim.container == "reranking-services" else "reranking-services"]


@pytest.mark.parametrize("kind", HARMS)
@pytest.mark.parametrize("name", WORKERS)
async def test_harm_costs_one_capability_alone_and_is_told_typed(
    stack: Stack, measured: Measured, name: str, kind: str
) -> None:
    """Its callers get typed errors, in bounded time and soon at once; others notice nothing; then it serves again."""
    harm, victim, bars = HARMS[kind], KNOCKS[name], Bars(f"{name} {kind}", measured)
    async with client(stack) as http:
        await _until(http, victim, serving=True, seconds=LOADED_SECONDS)
        async with asking(http, victim, lanes=LANES) as seen, asking(http, bystander(victim), lanes=1) as others:
            await asyncio.sleep(1.0)
            hurt_at = time.monotonic()
            await asyncio.to_thread(harm.hurt, name)
            known_at = await _until(http, victim, serving=False, seconds=DETECTED_SECONDS + 5)
            await asyncio.sleep(HURT_SECONDS)
            healed_at = time.monotonic()
            await asyncio.to_thread(harm.heal, name)
            back_at = await _until(http, victim, serving=True, seconds=LOADED_SECONDS)
            await asyncio.sleep(1.5)
    away = [reply for reply in seen.begun(known_at, healed_at) if reply.ended < healed_at]
    refused = [reply for reply in away if reply.began > known_at + STILL_TRIED_SECONDS]
    assert refused, "nobody called while it was away, so nothing was proved"
    assert failed(away) == away
    for (status, code), number in Counter((reply.status, reply.code) for reply in failed(seen.replies)).items():
        bars.tell(f"answers {status} {code}", number, "")
    bars.at_most("known after", known_at - hurt_at, "s", promise=DETECTED_SECONDS if harm.silent else 1.0, noisy=12.0)
    bars.at_most("slowest", slowest(seen.begun(hurt_at - 0.5, back_at)), "s", promise=DETECTED_SECONDS, noisy=12.0)
    bars.at_most("refusals when it is no longer tried, p99", p99(refused) * 1000, "ms", promise=100, noisy=1000)
    since = back_at if kind == "killed" else healed_at
    bars.at_most("first answer after it is back", _first_served(seen, since), "s", promise=harm.back, noisy=10.0)
    bars.at_most("wrong answers or untyped errors", len(wrong(seen.replies)), "", promise=0)
    bars.at_least("answers of another capability meanwhile", len(others.begun(hurt_at, back_at)), "", promise=5)
    bars.at_most("failed of another capability", len(failed(others.replies)), "", promise=0)
    bars.hold()


def _first_served(seen: Traffic, moment: float) -> float:
    return max(0.0, seen.first_served_after(moment))


async def _until(http: httpx.AsyncClient, knock: Knock, *, serving: bool, seconds: float) -> float:
    """Wait until the gateway says that a hop serves, or that it does not; the moment on ``time.monotonic()``."""
    end = time.monotonic() + seconds
    while (await hop_status(http, knock.hop))["serving"] != serving:
        assert time.monotonic() < end, f"{knock.hop}: serving={serving} not within {seconds:.0f} s"
        await asyncio.sleep(0.05)
    return time.monotonic()


_KILL_THE_WORKER = (
    "import os, signal\n"
    "for pid in filter(str.isdecimal, os.listdir('/proc')):\n"
    "    with open(f'/proc/{pid}/cmdline', 'rb') as file: line = file.read()\n"
    "    if b'-m\\0embedding_service' in line and b'init' not in line: os.kill(int(pid), signal.SIGKILL)\n"
)


async def test_a_crash_is_restarted_without_a_hand(stack: Stack, measured: Measured) -> None:
    """A worker whose process dies is started again by the engine, and serves again."""
    victim, bars = KNOCKS["embedding-services"], Bars("embedding-services crashed", measured)
    before = containers([victim.container])[victim.container].restarts
    async with client(stack) as http:
        async with asking(http, victim, lanes=LANES) as seen:
            await asyncio.sleep(1.0)
            began = time.monotonic()
            await asyncio.to_thread(python_in, victim.container, _KILL_THE_WORKER, check=False)
            await _until(http, victim, serving=False, seconds=DETECTED_SECONDS)
            back_at = await _until(http, victim, serving=True, seconds=LOADED_SECONDS)
            await asyncio.sleep(1.5)
    assert containers([victim.container])[victim.container].restarts == before + 1
    assert failed(seen.replies), "the crash hit nobody, so nothing was proved"
    bars.tell("serving again after", back_at - began, "s")
    bars.at_most("first answer after it serves", _first_served(seen, back_at), "s", promise=1.0, noisy=5.0)
    bars.at_most("wrong answers or untyped errors", len(wrong(seen.replies)), "", promise=0)
    bars.hold()


async def test_a_container_over_its_memory_limit_dies_alone(stack: Stack, measured: Measured) -> None:
    """The kernel ends it and nothing else; its callers are told typed, the rest serves, and with room it is back."""
    victim = KNOCKS["embedding-services"]
    others_before = _restarts(victim)
    starved = stack.changed(MESH_EMBEDDING_MEMORY="160m")
    async with client(stack) as http:
        try:
            async with asking(http, bystander(victim), lanes=1) as others:
                await asyncio.to_thread(starved.anew, victim.container)
                await asyncio.to_thread(wait_for, lambda: _ran_out(victim.container), "the kernel ends it", seconds=60)
                answer = await http.post(victim.path, **victim.body)
                assert answer.status_code == 503, answer.text
                assert answer.json()["error"]["code"] in {"unavailable", "circuit_open", "no_endpoint"}
                await asyncio.sleep(1.0)
            assert others.replies
            assert failed(others.replies) == []
            assert _restarts(victim) == others_before, "something else died too"
        finally:
            await asyncio.to_thread(stack.anew, victim.container)
        await _until(http, victim, serving=True, seconds=LOADED_SECONDS)
        async with asking(http, victim, lanes=1) as again:
            await asyncio.sleep(0.5)
    assert failed(again.replies) == []
    measured("containers: answers of another capability while one starved", len(others.replies), "")


def _ran_out(name: str) -> bool:
    """Whether the engine has seen the kernel end it for its memory, now or before its last restart."""
    container = containers([name]).get(name)
    if container is None:
        return False
    return container.restarts >= 1 and (container.out_of_memory or _oom_events(name))


def _oom_events(name: str) -> bool:
    recorded = docker(
        "events", "--since", "2m", "--until", str(int(time.time())), "--filter", f"container={name}",
        "--filter", "event=oom", "--format", "{{json .}}",
    )  # fmt: skip
    return any(json.loads(line)["Action"] == "oom" for line in recorded.splitlines())


def _restarts(victim: Knock) -> dict[str, tuple[int, int]]:
    """How often every other container was restarted, and its process."""
    names = [name for name in (*WORKERS, "gateway") if name != victim.container]
    return {name: (each.restarts, each.pid) for name, each in containers(names).items()}
