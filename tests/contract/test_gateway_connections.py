"""What a client can do to a connection, over a real socket: ask for another protocol, say too little, pipeline."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from gateway.settings import GatewaySettings
from gateway.testing import FakePeers, RunningGateway
from mesh.errors import Overloaded

LIVE = b"GET /health/live HTTP/1.1\r\nHost: mesh\r\n\r\n"
INNER_BODY = b'{"input": "smuggled"}'
INNER = (
    b"POST /v1/embeddings HTTP/1.1\r\nHost: mesh\r\nX-Request-Id: smuggled\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(INNER_BODY), INNER_BODY)
)
HEADERS_SECONDS = 0.4


@pytest.fixture(scope="module")
def gateway() -> Iterator[RunningGateway]:
    """A gateway with little patience for headers, and a full reranking hop."""
    peers = FakePeers()
    peers.reranker.hop.refusal = Overloaded("Full.", retry_after=0.25)
    settings = GatewaySettings.model_validate({"timeouts": {"headers_seconds": HEADERS_SECONDS}})
    with RunningGateway(settings, peers) as running:
        yield running


@pytest.fixture
def connection(gateway: RunningGateway) -> Iterator[socket.socket]:
    """A connection to it."""
    with socket.create_connection(("127.0.0.1", urlsplit(gateway.url).port or 0), timeout=5) as opened:
        gateway.peers.embedder.calls.clear()
        yield opened


def all_from(connection: socket.socket) -> bytes:
    """Everything that comes until the server closes, in lower case."""
    received = b""
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            piece = b""
        if not piece:
            return received.lower()
        received += piece


def outer(line: bytes, body_headers: bytes, protocol: bytes) -> bytes:
    """A head that asks for another protocol."""
    return b"%s HTTP/1.1\r\nHost: mesh\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s\r\n" % (line, protocol, body_headers)


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"anything"])
@pytest.mark.parametrize("line", [b"POST /v1/embeddings", b"GET /health/live", b"DELETE /nowhere"])
@pytest.mark.parametrize("framing", [b"Content-Length: %d\r\n" % len(INNER), b"Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("pause", [0.0, 0.1])
def test_a_body_behind_an_upgrade_is_never_taken_for_a_request(
    gateway: RunningGateway, connection: socket.socket, line: bytes, framing: bytes, protocol: bytes, *, pause: float
) -> None:
    """One typed answer, the connection ends, and nothing behind it runs, in one segment with it or in a later one."""
    head = outer(line, framing, protocol)
    body = INNER if b"Length" in framing else b"%x\r\n%s\r\n0\r\n\r\n" % (len(INNER), INNER)
    if pause:
        connection.sendall(head)
        time.sleep(pause)
        with suppress(ConnectionError):  # closed by now, which is the promise
            connection.sendall(body + LIVE)
    else:
        connection.sendall(head + body + LIVE)
    began = time.monotonic()
    received = all_from(connection)
    assert received.startswith(b"http/1.1 400")
    assert received.count(b"http/1.1 ") == 1
    assert b"upgrade_not_supported" in received
    assert b"connection: close" in received
    assert time.monotonic() - began < 0.9  # no lingering
    assert gateway.peers.embedder.calls == []


def test_a_pipelined_upgrade_waits_for_its_turn_and_ends_the_connection(
    gateway: RunningGateway, connection: socket.socket
) -> None:
    """What was asked before it is answered; what comes behind it is not read."""
    connection.sendall(LIVE + outer(b"POST /embed", b"Content-Length: %d\r\n" % len(INNER), b"h2c") + INNER + LIVE)
    received = all_from(connection)
    assert (received.count(b"http/1.1 200"), received.count(b"http/1.1 400"), received.count(b"http/1.1 ")) == (1, 1, 2)
    assert gateway.peers.embedder.calls == []


@pytest.mark.parametrize("none", [b"", b"Content-Length: 0\r\n"])
def test_an_upgrade_without_a_body_is_served_as_it_stands(connection: socket.socket, none: bytes) -> None:
    """Some HTTP libraries offer h2c on every GET; nothing behind it is read."""
    connection.sendall(outer(b"GET /health/live", none, b"h2c") + INNER)
    received = all_from(connection)
    assert received.startswith(b"http/1.1 200")
    assert received.count(b"http/1.1 ") == 1


def test_a_tunnel_is_refused_and_nothing_behind_it_is_read(gateway: RunningGateway, connection: socket.socket) -> None:
    """CONNECT has no place here, whatever its target."""
    connection.sendall(b"CONNECT /v1/embeddings HTTP/1.1\r\nHost: mesh\r\n\r\n" + INNER)
    received = all_from(connection)
    assert (received[:12], received.count(b"http/1.1 ")) == (b"http/1.1 400", 1)
    assert gateway.peers.embedder.calls == []


@pytest.mark.parametrize("said", [b"", b"\r\n", b"GET /health/live HT", LIVE[:-2], LIVE + b"GET /he"])
def test_a_head_that_does_not_come_ends_the_connection(connection: socket.socket, said: bytes) -> None:
    """A silent connection, an empty line, half a head, first or behind a request: all are closed in time."""
    began = time.monotonic()
    connection.sendall(said)
    all_from(connection)
    assert HEADERS_SECONDS - 0.1 < time.monotonic() - began < HEADERS_SECONDS + 2


def test_a_head_that_comes_byte_by_byte_has_the_time_of_one(connection: socket.socket) -> None:
    """Each byte must not buy another wait."""
    began = time.monotonic()
    with pytest.raises(ConnectionError):
        for byte in b"GET /health/live HTTP/1.1\r\nX-Slow: " + b"a" * 1000:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)
    assert time.monotonic() - began < HEADERS_SECONDS + 2


def test_an_empty_line_behind_an_answer_does_not_keep_the_connection(connection: socket.socket) -> None:
    """It ends the time for keeping alive, so another has to begin."""
    connection.sendall(LIVE)
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    connection.sendall(b"\r\n")
    began = time.monotonic()
    assert all_from(connection) == b""
    assert time.monotonic() - began < HEADERS_SECONDS + 2


def test_an_idle_connection_and_a_slow_answer_are_not_cut_short(
    gateway: RunningGateway, connection: socket.socket
) -> None:
    """Behind an answer the keep-alive time counts, and half of a next request does not cost this one its answer."""
    connection.sendall(LIVE)
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    time.sleep(HEADERS_SECONDS * 2)
    connection.sendall(b"GET /v1/gpu/stream?interval_ms=100 HTTP/1.1\r\nHost: mesh\r\n\r\nGET /he")
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_the_rest_of_an_unread_body_has_to_come_in_time(connection: socket.socket) -> None:
    """It was refused and is dropped; its sender must not keep the connection by sending no more of it."""
    head = b"POST /v2/rerank HTTP/1.1\r\nHost: mesh\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    connection.sendall(head)
    assert connection.recv(65536).startswith(b"HTTP/1.1 429")
    connection.sendall(b" " * 10)
    began = time.monotonic()
    assert all_from(connection) == b""
    assert time.monotonic() - began < HEADERS_SECONDS + 2


@pytest.mark.parametrize("path", [b"/health/live", b"/health/ready", b"/health"])
def test_a_probe_by_head_is_answered_as_one_by_get_without_the_body(connection: socket.socket, path: bytes) -> None:
    """The connection's next answer begins where the head ends."""
    connection.sendall(b"HEAD %s HTTP/1.1\r\nHost: mesh\r\n\r\n" % path)
    answer = connection.recv(65536)
    connection.sendall(b"GET %s HTTP/1.1\r\nHost: mesh\r\n\r\n" % path)
    second = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")
    assert second.startswith(b"HTTP/1.1 200")
    assert length_of(answer) == length_of(second) == len(second.partition(b"\r\n\r\n")[2])


def length_of(answer: bytes) -> int:
    """What Content-Length says."""
    return int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
