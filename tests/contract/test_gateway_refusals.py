"""Refusals before the body was read, over a real socket: what becomes of the connection and of the rest."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from gateway.admission import Places
from gateway.door import Door
from gateway.journal import Journal
from gateway.lifecycle import Lifecycle
from gateway.loop import LoopDelay
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers, RunningGateway
from mesh.errors import Overloaded

LIVE = b"GET /health/live HTTP/1.1\r\nHost: mesh\r\n\r\n"


@pytest.fixture(scope="module")
def busy() -> Iterator[RunningGateway]:
    """A gateway whose embedding hop has no room."""
    peers = FakePeers()
    peers.embedder.hop.refusal = Overloaded("Full.", retry_after=0.25)
    with RunningGateway(GatewaySettings(), peers) as gateway:
        yield gateway


@pytest.fixture
def connection(busy: RunningGateway) -> Iterator[socket.socket]:
    """A connection to it."""
    with socket.create_connection(("127.0.0.1", urlsplit(busy.url).port or 0), timeout=5) as opened:
        yield opened


def head_of(size: int, *lines: str) -> bytes:
    """A request's head that promises so many bytes."""
    sent = ("POST /v1/embeddings HTTP/1.1", "Host: mesh", "Content-Type: application/json", f"Content-Length: {size}")
    return ("\r\n".join((*sent, *lines)) + "\r\n\r\n").encode()


def answer_on(connection: socket.socket) -> bytes:
    """One whole answer, in lower case."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.lower().partition(b"\r\n\r\n")
    length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def test_a_connection_outlives_a_refusal_whose_body_still_comes(connection: socket.socket) -> None:
    """The answer is there before the body; the body is dropped, and the connection's next request is understood."""
    connection.sendall(head_of(900_000))
    refused = answer_on(connection)
    connection.sendall(b" " * 900_000)
    connection.sendall(LIVE)
    assert refused.startswith(b"http/1.1 429")
    assert b"connection: close" not in refused
    assert answer_on(connection).startswith(b"http/1.1 200")


def test_a_body_that_does_not_end_ends_the_connection(connection: socket.socket) -> None:
    """After the answer and a bounded rest, whatever was promised."""
    connection.sendall(head_of(16_000_000))
    refused = answer_on(connection)
    sent = 0
    with pytest.raises(ConnectionError):
        while sent < 16_000_000:
            connection.sendall(b" " * 100_000)
            sent += 100_000
    assert refused.startswith(b"http/1.1 429")
    assert b"connection: close" in refused


def test_a_client_that_waits_for_our_word_never_has_to_send(connection: socket.socket) -> None:
    """``Expect: 100-continue`` is answered by the refusal itself, and the connection ends: nobody knows what comes."""
    connection.sendall(head_of(100, "Expect: 100-continue"))
    refused = answer_on(connection)
    connection.shutdown(socket.SHUT_WR)
    assert refused.startswith(b"http/1.1 429")
    assert b"connection: close" in refused
    assert connection.recv(1) == b""


@pytest.mark.parametrize("size", [100_000, 3_000_000, 12_000_000])
def test_a_client_that_sends_all_before_it_reads_gets_its_answer(busy: RunningGateway, size: int) -> None:
    """Most HTTP libraries do so; a reset must not eat what was said."""
    body = b'{"input": "' + b"a" * size + b'"}'
    answer = httpx.post(f"{busy.url}/v1/embeddings", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["retry-after-ms"]) == (429, "250")


class AlwaysLate(LoopDelay):
    """An event loop that never keeps time."""

    def __init__(self) -> None:
        super().__init__(0.02, later=lambda *_: None)
        self.is_late = True


@pytest.fixture(scope="module")
def late() -> Iterator[RunningGateway]:
    """A gateway that has no time at all."""
    lifecycle = Lifecycle()
    door = Door(Places(most=8, few=0, delay=AlwaysLate()), journal=Journal(), lifecycle=lifecycle)
    with RunningGateway(GatewaySettings(), FakePeers(), door) as gateway:
        yield gateway


EMBED = b"POST /embed HTTP/1.1\r\nHost: mesh\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n"


def test_a_late_gateway_turns_away_and_keeps_the_connection(late: RunningGateway) -> None:
    """In the path's dialect, with advice and id; what comes of the body is dropped, and health is answered."""
    with socket.create_connection(("127.0.0.1", urlsplit(late.url).port or 0), timeout=5) as connection:
        connection.sendall(EMBED)
        refused = answer_on(connection)
        connection.sendall(b"[1,2]" + LIVE)
        live = answer_on(connection)
        connection.sendall(b"GET /v1/gpu HTTP/1.1\r\nHost: mesh\r\nX-Request-Id: mine\r\n\r\n")
        again = answer_on(connection)
    assert refused.startswith(b"http/1.1 429 too many requests\r\n")
    assert b'"error_type":"overloaded"' in refused
    assert b"\r\nretry-after-ms: " in refused
    assert live.startswith(b"http/1.1 200")
    assert b'"reason":"gateway_busy"' in again
    assert b"\r\nx-request-id: mine\r\n" in again


def test_pipelined_requests_are_turned_away_in_order(late: RunningGateway) -> None:
    """However many: each has its own answer, and health among them is served in its turn."""
    count = 2000
    with socket.create_connection(("127.0.0.1", urlsplit(late.url).port or 0), timeout=20) as connection:
        asked = (
            LIVE
            + b"GET /v1/gpu HTTP/1.1\r\nHost: mesh\r\n\r\n" * count
            + LIVE.replace(b"Host", b"Connection: close\r\nHost")
        )
        sender = threading.Thread(target=connection.sendall, args=(asked,))
        sender.start()
        received = b""
        while piece := connection.recv(1 << 20):
            received += piece
        sender.join()
    assert received.startswith(b"HTTP/1.1 200")
    assert received.count(b"HTTP/1.1 429") == count
    assert received.count(b"HTTP/1.1 200") == 2
    assert received.endswith(b'{"status":"live"}')


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (EMBED.replace(b"Host", b"Expect: 100-continue\r\nHost"), b"429"),
        (EMBED.replace(b"Host", b"Connection: Upgrade\r\nUpgrade: h2c\r\nHost"), b"400"),
        (EMBED.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked"), b"429"),
        (b"GET /v1/gpu HTTP/1.0\r\n\r\n", b"429"),
    ],
)
def test_what_ends_a_connection_ends_it_at_a_late_gateway_too(
    late: RunningGateway, request_: bytes, status: bytes
) -> None:
    """The short way is for plain requests alone."""
    with socket.create_connection(("127.0.0.1", urlsplit(late.url).port or 0), timeout=5) as connection:
        connection.sendall(request_)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert received.startswith(b"HTTP/1.1 " + status)
    assert b"connection: close" in received


def test_the_short_way_says_what_the_layers_say(late: RunningGateway) -> None:
    """Headers and body alike, but for what differs between any two answers."""
    with httpx.Client(base_url=late.url, headers={"x-request-id": "same"}) as client:
        short = client.post("/v1/embeddings", json={"input": "a"})
        long = client.post("/v1/embeddings", content=iter([b'{"input": "a"}']))
    differing = {"server-timing", "connection", "retry-after", "retry-after-ms"}
    assert long.headers["connection"] == "close"
    assert short.json() == long.json()
    assert {k: v for k, v in short.headers.items() if k not in differing} == {
        k: v for k, v in long.headers.items() if k not in differing
    }
    assert set(short.headers) == set(long.headers) - {"connection"}
