"""Reading streamed answers: their texts' times, their tokens, and their end."""

from __future__ import annotations

import asyncio
import json
from typing import cast

import pytest

from bench.load import RequestFailed
from bench.streams import StreamConnection, Streamed

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


class Wire:
    """A transport that goes nowhere."""

    def write(self, data: bytes) -> None:
        """Lose it."""


def chunk(**said: object) -> bytes:
    """One event in one chunk, as servers send it."""
    event = f"data: {json.dumps(said)}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(event), event)


def delta(text: str) -> bytes:
    """An event with some text."""
    return chunk(choices=[{"index": 0, "delta": {"content": text}}])


def connection() -> StreamConnection:
    """A connection over a wire that leads nowhere."""
    made = StreamConnection()
    made.connection_made(cast("asyncio.BaseTransport", Wire()))
    return made


async def read(made: StreamConnection, *arrivals: bytes) -> Streamed:
    """What it makes of an answer that arrives so."""
    asked = asyncio.ensure_future(made.ask(b"request"))
    await asyncio.sleep(0)
    for data in arrivals:
        made.data_received(data)
    return await asked


USAGE = chunk(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7})


@pytest.mark.parametrize("end", [(END,), (b"0\r", b"\n\r\n"), (b"0", b"\r", b"\n", b"\r", b"\n")])
async def test_an_answer_is_read_to_its_end(end: tuple[bytes, ...]) -> None:
    """Text that arrives together is one arrival, events without text are none, and a connection serves again."""
    made = connection()
    for _ in range(2):
        answer = await read(made, HEAD, delta(""), delta("a") + delta("b"), delta("c"), USAGE, *end)
        assert answer.tokens == 4
        assert len(answer.gaps) == 1
        assert answer.first_seconds >= 0
        assert made.text() == "abc"


async def test_a_refusal_is_a_failure_with_its_reason() -> None:
    """An answer other than 200 is told."""
    with pytest.raises(RequestFailed, match="429"):
        await read(connection(), b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\nbusy")


@pytest.mark.parametrize("arrivals", [(HEAD, USAGE, END), (HEAD, delta("a"), END)], ids=["no text", "no usage"])
async def test_a_broken_answer_counts_for_nothing(arrivals: tuple[bytes, ...]) -> None:
    """Without text or usage nothing was measured."""
    with pytest.raises(RequestFailed, match="without text or without usage"):
        await read(connection(), *arrivals)


async def test_a_closed_connection_fails_what_waits() -> None:
    """A stream that breaks off is no answer."""
    made = connection()
    asked = asyncio.ensure_future(made.ask(b"request"))
    await asyncio.sleep(0)
    made.data_received(HEAD + delta("a"))
    made.connection_lost(None)
    with pytest.raises(RequestFailed, match="closed"):
        await asked
    assert not made.is_open
