"""A worker's port in the hands of somebody who does not keep to the protocol. Whatever comes, it goes on serving."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.internal import api_implementation
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.clients.embedding import AsyncEmbeddingServiceClient
from mesh.errors import PayloadTooLarge
from mesh.pb.embedding.v1 import embedding_pb2 as pb
from mesh.testing import ScriptedEmbedding, serve
from mesh.testing.embedding import SERVICE
from mesh.wire import from_rpc_error

h2 = pytest.importorskip("h2", reason="the extra test has h2")

from tests.hop.raw_http2 import RawClient, bomb, framed  # noqa: E402 - needs h2

EMBED = f"/{SERVICE}/Embed"
STREAM = f"/{SERVICE}/EmbedStream"
GOOD = pb.EmbedRequest(texts=["words"]).SerializeToString()
FORGOTTEN = ""
OK, UNKNOWN, INVALID, EXHAUSTED, UNIMPLEMENTED, INTERNAL = "0", "2", "3", "8", "12", "13"
HEALTH_SECONDS = 1.0
"""The promise is a tenth of it. Here attacker, worker and test share one interpreter."""


@pytest.fixture
async def worker() -> AsyncIterator[str]:
    """A worker that serves before and after."""
    async with serve([ScriptedEmbedding().capability()], max_message_bytes=4 * 2**20) as running:
        yield running.target
        async with AsyncEmbeddingServiceClient(running.target) as client:
            assert (await client.embed(["still", "here"])).rows == 2


async def attacked(worker: str, attack: Callable[[RawClient], Any]) -> Any:
    """Run an attack beside the worker, whose health is asked all the while; what the attack found out."""

    def run() -> Any:
        with RawClient(worker) as client:
            return attack(client)

    attacking = asyncio.create_task(asyncio.to_thread(run))
    async with grpc.aio.insecure_channel(worker) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        while True:
            began = time.monotonic()
            answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert time.monotonic() - began < HEALTH_SECONDS
            if attacking.done():
                return attacking.result()
            await asyncio.wait({attacking}, timeout=0.02)


class Memory:
    """How much more memory this process has held at once than at the block's beginning, in bytes."""

    def __enter__(self) -> Memory:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._most()
        return self

    def __exit__(self, *_: object) -> None:
        self.grown = self._most() - self._before

    def _most(self) -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("method", [EMBED, STREAM])
async def test_a_gzip_bomb_is_not_inflated(worker: str, method: str) -> None:
    """A quarter of a gibibyte in as many kibibytes is refused for what it would become, and memory stays."""
    packed = bomb(256)
    assert len(packed) < 2**19

    def attack(client: RawClient) -> str:
        stream = client.open(method, ("grpc-encoding", "gzip"))
        client.send(stream, framed(packed, compressed=True))
        return client.wait(stream).status

    with Memory() as memory:
        assert await attacked(worker, attack) == EXHAUSTED
    assert memory.grown < 64 * 2**20


async def test_a_clients_own_compression_meets_the_same_limit(worker: str) -> None:
    """Seen by a gRPC library, and by a hop: too large, and not busy."""
    text = pb.EmbedRequest(texts=["a" * (8 * 2**20)]).SerializeToString()
    async with grpc.aio.insecure_channel(worker) as channel:
        call: Any = channel.unary_unary(EMBED)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(text, timeout=20, compression=grpc.Compression.Gzip)
    assert isinstance(from_rpc_error(refused.value, hop="embedding", caller_time_is_up=False), PayloadTooLarge)


@pytest.mark.parametrize(
    ("encoding", "data", "statuses"),
    [
        ("br", framed(GOOD, compressed=True), {UNIMPLEMENTED, INTERNAL}),
        ("gzip", framed(b"\x1f\x8b" + b"\xff" * 100, compressed=True), {INTERNAL}),
        ("identity", framed(GOOD, compressed=True), {INTERNAL, UNIMPLEMENTED}),
        ("identity", framed(b"a" * (8 * 2**20)), {EXHAUSTED}),
        ("identity", framed(GOOD, length=2**32 - 1), {EXHAUSTED}),
        # gRPC's own Python forgets a call that ends without a message: nobody is told, and nothing waits.
        ("identity", framed(b"", length=5), {FORGOTTEN}),
        ("identity", b"\x00\x00", {FORGOTTEN}),
        # Read as if it were none, or forgotten, as chance has it in gRPC's own Python.
        ("identity", b"\x06" + framed(GOOD)[1:], {OK, FORGOTTEN}),
        ("identity", framed(b"\xff" * 50), {INVALID}),
        ("identity", framed(b"\x0a\xff\xff\xff\xff\x0f"), {INVALID}),
        ("identity", framed(b"\x12\x02\xc3\x28"), {INVALID}),
        ("identity", framed(b"\x0b" * 5000), {INVALID}),
    ],
    ids=[
        "an unknown compression", "broken gzip", "compressed without a compression", "too large", "a length of 4 GiB",
        "cut off", "half a frame", "a strange flag", "no message", "a length without end", "no UTF-8", "nested groups",
    ],
)  # fmt: skip
async def test_broken_messages_end_their_call(worker: str, encoding: str, data: bytes, statuses: set[str]) -> None:
    """With a status that says whose fault it is, where the worker sees the message at all."""

    def attack(client: RawClient) -> str:
        stream = client.open(EMBED, ("grpc-encoding", encoding))
        client.send(stream, data)
        # An answer is waited for; that none comes, only for as long as one would take.
        return client.wait(stream, seconds=2.0 if FORGOTTEN in statuses else 15.0).status

    assert await attacked(worker, attack) in statuses


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        ([("x-long", "a" * 17_000)], {EXHAUSTED}),
        ([("x-long", "a" * 1_000_000)], {EXHAUSTED}),
        ([(f"x-{number}", "a" * 100) for number in range(500)], {EXHAUSTED}),
        ([("x-bin-bin", "!!! no base64 !!!")], {OK, INTERNAL, "reset"}),
        ([("x-request-id", "one"), ("x-request-id", "two")], {OK}),
        ([("authorization", "Bearer a"), ("authorization", "Bearer b")], {OK}),
        ([("grpc-timeout", "soon")], {OK, INTERNAL, "reset"}),
        ([("grpc-timeout", "-1S")], {OK, INTERNAL, "reset"}),
        ([("grpc-timeout", "99999999999999999999H")], {OK, INTERNAL, "reset"}),
        ([("grpc-timeout", "99999999H")], {OK}),
        ([("grpc-timeout", "1S"), ("grpc-timeout", "1H")], {OK, INTERNAL, "reset"}),
        ([("grpc-timeout", "0n")], {"4", "reset", ""}),
        ([("traceparent", "00-" + "z" * 5000)], {OK}),
        ([("x-mesh-tenant", "\xff\xfe" * 500)], {OK, INTERNAL, "reset"}),
        ([("content-type", "text/html")], {"http 415", UNKNOWN, UNIMPLEMENTED, INTERNAL, "reset", OK}),
        ([(":method", "GET")], {"http 405", UNKNOWN, UNIMPLEMENTED, INTERNAL, "reset"}),
        ([(":scheme", "gopher")], {OK, INTERNAL, "reset", "http 400", UNKNOWN}),
    ],
    ids=[
        "a long value", "a longer one", "many values", "no base64", "two ids", "two credentials", "a word as timeout",
        "a negative timeout", "a timeout without end", "eleven thousand years", "two timeouts", "no time",
        "a long trace", "bytes that are no text", "no gRPC", "GET", "another scheme",
    ],
)  # fmt: skip
async def test_strange_metadata_ends_its_call_or_nothing(
    worker: str, headers: list[tuple[str, str]], statuses: set[str]
) -> None:
    """Too much of it is refused; what cannot be understood is left aside, and no call hangs."""

    def attack(client: RawClient) -> str:
        client.settle()
        stream = client.open(EMBED, *headers)
        with suppress(h2.exceptions.ProtocolError):  # the worker has ended it by now
            client.send(stream, framed(GOOD))
        return client.wait(stream).status

    assert await attacked(worker, attack) in statuses


@pytest.mark.parametrize(
    "path", ["/", "", "/x", "//", f"/{SERVICE}", f"/{SERVICE}/", f"/{SERVICE}/Nope", "/a.b.C/Embed", "/" + "a" * 10_000]
)
async def test_methods_that_are_none_are_unimplemented(worker: str, path: str) -> None:
    """Whatever the name looks like."""

    def attack(client: RawClient) -> str:
        stream = client.open(path)
        client.send(stream, framed(GOOD))
        return client.wait(stream).status

    assert await attacked(worker, attack) in {UNIMPLEMENTED, "reset", "http 404", EXHAUSTED, UNKNOWN}


@pytest.mark.parametrize("method", [EMBED, STREAM])
async def test_a_call_that_is_left_half_open_holds_up_nobody(worker: str, method: str) -> None:
    """Headers and no message, half a message, or an end without one: others are served, the connection can go."""

    def attack(client: RawClient) -> str:
        streams = [client.open(method) for _ in range(50)]
        for stream in streams[:25]:
            client.send(stream, framed(GOOD)[:3], end=False)
        good = client.open(method)
        client.send(good, framed(GOOD if method == EMBED else pb.EmbedStreamRequest().SerializeToString()))
        client.open(method, end=True)
        return client.wait(good).status

    assert await attacked(worker, attack) == OK


async def test_metadata_before_the_handshake_is_bounded_too(worker: str) -> None:
    """A client that has not yet heard the limit may go over it, up to the core's own 16 MiB, and not beyond."""

    def attack(client: RawClient) -> str:
        stream = client.open(EMBED, ("x-long", "a" * 20_000_000))
        with suppress(h2.exceptions.ProtocolError):
            client.send(stream, framed(GOOD))
        return client.wait(stream).status

    assert await attacked(worker, attack) in {EXHAUSTED, "reset"}


async def test_a_flood_of_resets_costs_others_nothing(worker: str) -> None:
    """Ten thousand calls opened and reset at once (rapid reset): every other client's call is answered meanwhile."""
    answered = 0

    def attack(client: RawClient) -> int:
        resets = 0
        while resets < 10_000 and not client.over:
            for _ in range(100):
                client.connection.reset_stream(client.open(EMBED, flush=False))
            resets += 100
            client.flush()
            client.listen(0.001)
        return resets

    async with AsyncEmbeddingServiceClient(worker) as client:
        attacking = asyncio.create_task(attacked(worker, attack))
        while not attacking.done():
            assert (await client.embed(["meanwhile"])).rows == 1
            answered += 1
            await asyncio.sleep(0.01)
    assert await attacking > 1000
    assert answered > 0


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: mesh\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
        b"\x00" * 100_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100_000,
        # SETTINGS, then a CONTINUATION of nothing.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x04\x09\x00\x00\x00\x00\x01abcd",
        # A HEADERS frame that never ends its headers, continued ten thousand times.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x01\x00\x00\x00\x00\x01\x82"
        + b"\x00\x00\x0a\x09\x00\x00\x00\x00\x01\x40\x02xx\x05aaaaa" * 10_000,
        # Ten thousand PINGs, and ten thousand SETTINGS.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
        + b"\x00\x00\x08\x06\x00\x00\x00\x00\x00aaaaaaaa" * 10_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64" * 10_000,
        random.Random(7).randbytes(200_000),
    ],
    ids=["HTTP/1.1", "TLS", "zeros", "frames of nothing", "a continuation", "headers without end", "pings", "settings",
         "noise"],
)  # fmt: skip
async def test_what_is_no_grpc_at_all_ends_its_connection(worker: str, data: bytes) -> None:
    """Another protocol, broken frames, floods of frames: the connection ends or idles, the worker serves."""

    def attack(_: RawClient) -> None:
        host, _sep, port = worker.rpartition(":")
        # Ended at any step, and then also "not connected"; or silent until the time is up.
        with socket.create_connection((host, int(port)), timeout=5) as connection, suppress(OSError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    await attacked(worker, attack)


async def test_many_connections_that_say_nothing_hold_up_nobody(worker: str) -> None:
    """Two hundred of them."""

    def attack(_: RawClient) -> None:
        host, _sep, port = worker.rpartition(":")
        opened = [socket.create_connection((host, int(port)), timeout=5) for _ in range(200)]
        time.sleep(0.2)
        for connection in opened:
            connection.close()

    await attacked(worker, attack)


def test_protobuf_is_read_by_the_library_in_c() -> None:
    """The one in Python alone had no limit on how deep messages nest (CVE-2025-4565)."""
    assert api_implementation.Type() == "upb"
