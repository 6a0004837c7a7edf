"""Reading what comes back: HTTP answers, and the vectors in them."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import cast

import numpy as np
import pytest

from bench.load import Connection, Lane, RequestFailed, post
from bench.ways import read_vectors
from mesh.testing import FakeClock

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\nhello world"


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written.append(data)

    def close(self) -> None:
        """Nothing to close."""


def connection() -> tuple[Connection, Wire]:
    """A connection over a wire that leads nowhere."""
    made, wire = Connection(), Wire()
    made.connection_made(cast("asyncio.BaseTransport", wire))
    return made, wire


@pytest.mark.parametrize("piece", [1, 7, 1000])
async def test_answers_are_whole_however_they_arrive(piece: int) -> None:
    """One request after the other on a connection, in pieces of any size."""
    made, wire = connection()
    for _ in range(2):
        asked = asyncio.ensure_future(made.ask(b"request"))
        await asyncio.sleep(0)
        for start in range(0, len(ANSWER), piece):
            made.data_received(ANSWER[start : start + piece])
        assert await asked == b"hello world"
    assert wire.written == [b"request", b"request"]


@pytest.mark.parametrize(("idle_seconds", "dialled"), [(0.5, 1), (60.0, 2)])
async def test_a_connection_that_lay_idle_is_replaced(idle_seconds: float, dialled: int) -> None:
    """Servers close what lies idle: a pause between two rounds must not fail the next one."""
    clock = FakeClock()
    made: list[Connection] = []

    async def dial() -> Connection:
        made.append(connection()[0])
        return made[-1]

    lane = Lane(dial, clock)
    for _ in range(2):
        asked = asyncio.ensure_future(lane.ask(b"request"))
        await asyncio.sleep(0)
        made[-1].data_received(ANSWER)
        assert await asked == b"hello world"
        clock.advance(idle_seconds)
    assert len(made) == dialled


async def test_refusals_are_failures_with_their_reason() -> None:
    """An answer other than 200 is told with its status and the start of its body."""
    made, _ = connection()
    asked = asyncio.ensure_future(made.ask(b"request"))
    await asyncio.sleep(0)
    made.data_received(b"HTTP/1.1 429 Too Many\r\ncontent-length: 4\r\n\r\nbusy")
    with pytest.raises(RequestFailed, match="HTTP 429: busy"):
        await asked


async def test_a_closed_connection_fails_what_waits() -> None:
    """A request whose connection breaks does not wait for ever."""
    made, _ = connection()
    asked = asyncio.ensure_future(made.ask(b"request"))
    await asyncio.sleep(0)
    made.connection_lost(None)
    with pytest.raises(RequestFailed, match="closed"):
        await asked


def test_requests_are_written_whole() -> None:
    """Host, type and length are those of the address and the body."""
    head, _, body = post("http://127.0.0.1:8000", "/v1/embeddings", {"input": "é"}).partition(b"\r\n\r\n")
    assert head.splitlines()[:2] == [b"POST /v1/embeddings HTTP/1.1", b"Host: 127.0.0.1:8000"]
    assert f"Content-Length: {len(body)}".encode() in head.splitlines()
    assert json.loads(body) == {"input": "é"}


def test_vectors_are_the_same_in_both_forms() -> None:
    """Base64 is little-endian float32, and numbers are numbers."""
    rows = np.array([[0.5, -1.0], [0.25, 3.0]], dtype="<f4")
    as_text = [base64.b64encode(row.tobytes()).decode() for row in rows]
    for vectors in (as_text, rows.tolist()):
        answer = json.dumps({"data": [{"embedding": vector} for vector in vectors]}).encode()
        assert (read_vectors(answer) == rows).all()
