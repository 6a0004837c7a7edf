"""Refusals before the body was read, over a real socket: what becomes of the connection and of the rest."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

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
