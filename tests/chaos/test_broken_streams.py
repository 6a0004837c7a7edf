"""Workers that are killed while they stream an answer: what was said stays, nothing is added but an error."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from ops.local.layout import CHECKOUT
from tests.chaos.bars import FULL, Bars, Measured
from tests.chaos.processes import LLM, Program, Replica, gateway_before, replicas
from tests.chaos.stand import hop_status, until_serving

pytestmark = pytest.mark.chaos

CHUNKING = Program("gpu-services", "chunking.v1.ChunkingService", (str(CHECKOUT / "tests/chaos/chunk_worker.py"),))
PIECES = 8
INTERVAL_SECONDS = 0.15
LONGEST_RUN_SECONDS = 20.0
DONE = "[DONE]"


@dataclass(slots=True)
class Stream:
    """What came of a streamed answer.

    Attributes:
        status: of HTTP.
        numbers: what was counted, in order.
        error: what ended it; empty where nothing did.
        whole: whether it said that it is whole.
        over_at: when it ended.
    """

    status: int = 0
    numbers: list[int] = field(default_factory=list)
    error: dict[str, Any] = field(default_factory=dict)
    whole: bool = False
    over_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One way to stream.

    Attributes:
        ask: the request's body for a text.
        hear: takes one line.
    """

    path: str
    hop: str
    program: Program
    ask: Callable[[str], Mapping[str, Any]]
    hear: Callable[[Stream, str], None]


def _hear_event(stream: Stream, line: str) -> None:
    """A line of server-sent events in OpenAI's shapes."""
    if not line.startswith("data: "):
        return
    assert not stream.error, f"something came after the error: {line}"
    if line.removeprefix("data: ") == DONE:
        stream.whole = True
        return
    event = json.loads(line.removeprefix("data: "))
    stream.error = event.get("error", {})
    for choice in event.get("choices", ()):
        text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
        stream.numbers += map(int, text.split())


def _hear_line(stream: Stream, line: str) -> None:
    """A line of JSON."""
    if not line:
        return
    assert not stream.error, f"something came after the error: {line}"
    event = json.loads(line)
    stream.error = event.get("error", {})
    stream.whole = "document" in event
    if "chunk" in event:
        stream.numbers.append(int(event["chunk"]["text"]))


def _chat(text: str) -> Mapping[str, Any]:
    return {"model": "", "stream": True, "messages": [{"role": "user", "content": text}]}


def _prompt(text: str) -> Mapping[str, Any]:
    return {"model": "", "stream": True, "prompt": text}


def _document(text: str) -> Mapping[str, Any]:
    return {"text": text}


KINDS = (
    Kind(path="/v1/chat/completions", hop="llm", program=LLM, ask=_chat, hear=_hear_event),
    Kind(path="/v1/completions", hop="llm", program=LLM, ask=_prompt, hear=_hear_event),
    Kind(path="/v1/chunk", hop="chunking", program=CHUNKING, ask=_document, hear=_hear_line),
)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.path.rpartition("/v1/")[2])


@each_kind
async def test_a_stream_whose_worker_dies_ends_typed_behind_its_last_word(measured: Measured, kind: Kind) -> None:
    """As soon as it has begun, in the middle, before the last word: an error at once, nothing lost, nothing doubled."""
    bars = Bars(f"killed while it writes, {kind.path}", measured)
    cuts = range(1, PIECES) if FULL else (1, PIECES // 2, PIECES - 1)
    async with replicas(kind.program, 1) as (only,), gateway_before([only], kind.hop) as gateway:
        async with gateway.client() as http:
            for after in cuts:
                stream, killed_at = await _killed_after(http, kind, only, after)
                assert stream.status == httpx.codes.OK
                assert stream.numbers == list(range(after)), "not the exact beginning of the answer"
                assert not stream.whole, "a broken stream looks whole"
                assert _code_of(stream) == "connection_lost", stream.error
                bars.at_most(f"error after the kill, {after} of {PIECES}", stream.over_at - killed_at, "s", promise=1.0)
                assert (await hop_status(http, kind.hop))["in_flight"] == 0, "the stream's place was not given back"
                await only.start()
                await until_serving(gateway, kind.hop)
            await _is_whole(http, kind)
    bars.hold()


@each_kind
async def test_a_worker_that_dies_before_it_said_anything_is_told_as_a_status(measured: Measured, kind: Kind) -> None:
    """503 instead of a stream; nothing is begun a second time where nobody knows how far the first one came."""
    bars = Bars(f"killed before the first word, {kind.path}", measured)
    async with replicas(kind.program, 2) as two, gateway_before(two, kind.hop) as gateway, gateway.client() as http:
        reading = asyncio.create_task(_read(http, kind, f"{PIECES} 0.01 30", Stream()))
        asked = await _with_a_call(two)
        killed_at = time.monotonic()
        await asked.kill()
        async with asyncio.timeout(LONGEST_RUN_SECONDS):
            stream = await reading
        assert stream.status == httpx.codes.SERVICE_UNAVAILABLE
        assert _code_of(stream) == "connection_lost", stream.error
        bars.at_most("refusal after the kill", stream.over_at - killed_at, "s", promise=1.0)
        assert (await hop_status(http, kind.hop))["in_flight"] == 0
        await _is_whole(http, kind)  # by the other one
    bars.hold()


def _code_of(stream: Stream) -> str:
    """Why it ended: OpenAI's shape has it as the code, ours as the reason."""
    return str(stream.error.get("reason", stream.error.get("code", ""))).lower()


async def _killed_after(http: httpx.AsyncClient, kind: Kind, only: Replica, after: int) -> tuple[Stream, float]:
    """A stream whose worker dies when so many numbers are there; and when it died."""
    stream = Stream()
    reading = asyncio.create_task(_read(http, kind, f"{PIECES} {INTERVAL_SECONDS}", stream))
    async with asyncio.timeout(LONGEST_RUN_SECONDS):
        while not stream.status or len(stream.numbers) < after:
            await asyncio.sleep(0.002)
        killed_at = time.monotonic()
        await only.kill()
        await reading
    return stream, killed_at


async def _with_a_call(of: Sequence[Replica]) -> Replica:
    """The one that has a call in flight, once one has, by its own account."""
    async with asyncio.timeout(LONGEST_RUN_SECONDS):
        while True:
            for one in of:
                if (await one.counts()).total("mesh_rpc_calls_in_flight", service=one.program.service):
                    return one
            await asyncio.sleep(0.05)


async def _is_whole(http: httpx.AsyncClient, kind: Kind) -> None:
    """An undisturbed stream ends as a whole one."""
    stream = await _read(http, kind, f"{PIECES} 0.01", Stream())
    assert (stream.numbers, stream.whole, stream.error) == (list(range(PIECES)), True, {})


async def _read(http: httpx.AsyncClient, kind: Kind, text: str, stream: Stream) -> Stream:
    headers = {"accept": "application/x-ndjson"} if kind.hop == "chunking" else {}
    async with http.stream("POST", kind.path, json=kind.ask(text), headers=headers) as answer:
        stream.status = answer.status_code
        if answer.is_success:
            async for line in answer.aiter_lines():
                kind.hear(stream, line)
        else:
            problem = json.loads(await answer.aread())
            stream.error = problem.get("error", problem)
    stream.over_at = time.monotonic()
    return stream
