"""The matrix of certificates against a real worker: only the good pair passes, and every other one is named."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY

from mesh.clients import AsyncEmbeddingServiceClient, ClientTls
from mesh.endpoint import UNREACHABLE
from mesh.errors import CallerRefused, Unavailable
from mesh.serving.reflecting import V1_NAME
from mesh.testing import ScriptedEmbedding, serve
from mesh.testing.server import until_serving
from mesh.tls.certificates import TlsFiles
from mesh.tls.problems import TlsProblem
from ops.tls.testing import FUTURE, GOOD, PAST, Office
from tests.hop.tls_stand import SERVER, at, client_tls, client_to, rotate, serve_tls, told

EMBEDDING = "embedding.v1.EmbeddingService"


@dataclass(frozen=True)
class Case:
    """One row: what the worker and the client have, and what the client's status then says."""

    name: str
    problem: TlsProblem
    words: str
    server: Callable[[Office], TlsFiles] = lambda office: office.issue(SERVER)
    client: Callable[[Office], ClientTls] = lambda office: client_tls(office.issue("gateway"))


def elsewhere(office: Office) -> Office:
    """Another authority."""
    return Office.open(office.folder / "elsewhere", "another authority")


CASES = (
    Case(
        "the worker's certificate comes from a wrong authority",
        TlsProblem.PEER_UNKNOWN_CA,
        "authority that MESH_TLS_CA does not hold",
        client=lambda office: client_tls(office.issue("gateway"), ca=elsewhere(office).ca),
    ),
    Case(
        "the worker's certificate carries another name",
        TlsProblem.PEER_WRONG_NAME,
        "does not carry the name embedding-services",
        server=lambda office: office.issue("reranking-services"),
    ),
    Case(
        "the client's certificate comes from a wrong authority",
        TlsProblem.OWN_UNKNOWN_CA,
        "no authority in MESH_TLS_CA has signed",
        client=lambda office: client_tls(elsewhere(office).issue("gateway"), ca=office.ca),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_certificates_that_do_not_fit_are_named(case: Case, tmp_path: Path) -> None:
    """To gRPC each is UNAVAILABLE; the endpoint's status, the log's words and a time series say which it is."""
    office = Office.open(tmp_path)
    labels = {"hop": "embedding", "problem": case.problem.value}
    before = REGISTRY.get_sample_value("mesh_tls_endpoint_problems_total", labels) or 0
    async with serve_tls(case.server(office)) as worker, client_to(worker.port, case.client(office)) as client:
        with pytest.raises(Unavailable):
            await client.embed(["a"])
        endpoint = await told(client.hop)
        with pytest.raises(Unavailable) as caught:
            await client.embed(["a"])
    assert (endpoint.health, endpoint.reason_code) == (UNREACHABLE, case.problem)
    assert case.words in endpoint.reason
    assert caught.value.reason in {case.problem.value, "CIRCUIT_OPEN"}
    assert str(tmp_path) not in caught.value.message
    assert REGISTRY.get_sample_value("mesh_tls_endpoint_problems_total", labels) == before + 1


async def test_what_is_in_use_is_looked_at_whatever_the_files_hold_meanwhile(tmp_path: Path) -> None:
    """New files that do not fit are not used; they keep nothing from being named."""
    office = Office.open(tmp_path)
    files = office.issue("gateway")
    tls = client_tls(files)
    files.key.write_bytes(office.issue("other").key.read_bytes())
    async with serve_tls(elsewhere(office).issue(SERVER)) as worker, client_to(worker.port, tls) as client:
        client.hop.start()
        assert (await told(client.hop)).reason_code == TlsProblem.PEER_UNKNOWN_CA


@pytest.mark.parametrize(
    ("who", "days", "problem", "words"),
    [
        (SERVER, PAST, TlsProblem.PEER_EXPIRED, "has expired"),
        (SERVER, FUTURE, TlsProblem.PEER_NOT_YET_VALID, "not valid yet"),
        ("gateway", PAST, TlsProblem.OWN_EXPIRED, "own certificate expired"),
        ("gateway", FUTURE, TlsProblem.OWN_NOT_YET_VALID, "valid from"),
    ],
)
async def test_a_certificate_out_of_time_is_named(
    who: str, days: tuple[float, float], problem: TlsProblem, words: str, tmp_path: Path
) -> None:
    """Whose it is, and that it is its time. It was good when its process started; that is how certificates end."""
    office = Office.open(tmp_path)
    lives = {SERVER: GOOD, "gateway": GOOD} | {who: days}
    server, gateway = (office.issue(name, days=life) for name, life in lives.items())
    tls = client_tls(gateway, watching=at(lives["gateway"]))
    async with serve_tls(server, watching=at(lives[SERVER])) as worker, client_to(worker.port, tls) as client:
        endpoint = await told(client.hop)
    assert endpoint.reason_code == problem
    assert words in endpoint.reason
    assert "20" in endpoint.reason  # a date


async def test_a_worker_in_plaintext_is_named_and_not_called(tmp_path: Path) -> None:
    """Texts never leave a process with certificates unencrypted."""
    servicer = ScriptedEmbedding()
    async with serve([servicer.capability()]) as running:
        tls = client_tls(Office.open(tmp_path).issue("gateway"))
        async with client_to(running.worker.port, tls) as client:
            with pytest.raises(Unavailable):
                await client.embed(["a"])
            endpoint = await told(client.hop)
    assert endpoint.reason_code == TlsProblem.PEER_PLAINTEXT
    assert servicer.calls == 0


async def test_plaintext_to_a_worker_behind_tls_is_refused_and_named(tmp_path: Path) -> None:
    """Also for a client that has no certificate at all."""
    servicer = ScriptedEmbedding()
    files = Office.open(tmp_path).issue(SERVER)
    async with (
        serve_tls(files, capabilities=[servicer.capability()]) as worker,
        client_to(worker.port, None) as client,
    ):
        with pytest.raises(Unavailable):
            await client.embed(["a"])
        endpoint = await told(client.hop)
    assert endpoint.reason_code == TlsProblem.PEER_NEEDS_TLS
    assert servicer.calls == 0


async def test_a_client_without_a_certificate_is_refused(tmp_path: Path) -> None:
    """Encryption alone lets nobody in, not even to health."""
    office = Office.open(tmp_path)
    async with serve_tls(office.issue(SERVER)) as worker:
        credentials = grpc.ssl_channel_credentials(office.ca.read_bytes())
        async with grpc.aio.secure_channel(f"127.0.0.1:{worker.port}", credentials) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_worker_that_is_down_is_not_a_certificates_fault(tmp_path: Path) -> None:
    """Nobody listens, or somebody who says nothing: the core's own words stand."""
    tls = client_tls(Office.open(tmp_path).issue("gateway"))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel connects, and nobody answers
        async with client_to(1, tls) as refused, client_to(silent.getsockname()[1], tls) as ignored:
            for client in (refused, ignored):
                with pytest.raises(Unavailable):
                    await client.embed(["a"])
            await asyncio.sleep(4.0)
            for client in (refused, ignored):
                endpoint = client.hop.status().endpoints[0]
                assert (endpoint.health, endpoint.reason_code) == (UNREACHABLE, "UNAVAILABLE")


async def test_a_problem_that_was_mended_is_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """New files, no restart: the hop serves, and its status says nothing of what was."""
    office = Office.open(tmp_path)
    elsewhere(office).issue("gateway")
    strange = TlsFiles(office.ca, tmp_path / "elsewhere/gateway.pem", tmp_path / "elsewhere/gateway.key")
    async with serve_tls(office.issue(SERVER)) as worker, client_to(worker.port, client_tls(strange)) as client:
        with caplog.at_level(logging.ERROR, "mesh.tls"):
            await told(client.hop)
        assert [record.message for record in caplog.records] == ["an endpoint's certificates are at fault"]
        good = office.issue("gateway")
        strange.key.write_bytes(good.key.read_bytes())
        strange.certificate.write_bytes(good.certificate.read_bytes())
        await until_serving(client.hop)
        await client.embed(["a"])
        endpoint = client.hop.status().endpoints[0]
    assert (endpoint.reason, endpoint.reason_code) == ("", "")


@pytest.mark.parametrize(
    ("target", "server_name", "serves"),
    [
        ("127.0.0.1", SERVER, True),
        ("localhost", SERVER, True),
        ("127.0.0.1", "", True),
        ("localhost", "", True),
        ("dns:///localhost", SERVER, True),
        ("127.0.0.1", "gateway", False),
    ],
)
async def test_the_host_or_a_name_of_ones_own_choice_is_expected(
    target: str, server_name: str, serves: bool, tmp_path: Path
) -> None:
    """An address, a host's name, or the service's own name where all services share a host."""
    office = Office.open(tmp_path)
    tls = client_tls(office.issue("gateway"), server_name=server_name)
    async with (
        serve_tls(office.issue(SERVER)) as worker,
        AsyncEmbeddingServiceClient(f"{target}:{worker.port}", tls=tls) as client,
    ):
        if serves:
            await until_serving(client.hop)
            assert (await client.embed(["abc"])).array()[0][0] == 3.0
        else:
            assert (await told(client.hop)).reason_code == TlsProblem.PEER_WRONG_NAME


async def test_each_certificate_calls_what_its_rule_says(tmp_path: Path) -> None:
    """Another service's certificate is good for nothing but health; a rule may name a method."""
    office = Office.open(tmp_path)
    rules = {"gateway": ["*"], "monitor": [f"{EMBEDDING}/Info"], "bulk": [EMBEDDING]}
    async with serve_tls(office.issue(SERVER), rules=rules) as worker:

        async def may(name: str) -> tuple[bool, bool, bool]:
            """Whether a certificate may ask for Embed, EmbedStream and Info."""
            async with client_to(worker.port, client_tls(office.issue(name))) as client:
                await until_serving(client.hop)  # its probe passes, whoever it is
                return (
                    await _passes(client.embed(["a"])),
                    await _passes(anext(client.embed_stream(_one_batch()))),
                    await _passes(client.info()),
                )

        assert await may("gateway") == (True, True, True)
        assert await may("bulk") == (True, True, True)
        assert await may("monitor") == (False, False, True)
        assert await may("reranking-services") == (False, False, False)


async def _passes(call: Awaitable[object]) -> bool:
    try:
        await call
    except CallerRefused:
        return False
    return True


async def _one_batch() -> AsyncIterator[list[str]]:
    yield ["a"]


async def test_reflection_is_off_behind_tls_unless_asked_for(tmp_path: Path) -> None:
    """In plaintext it helps whoever develops; behind TLS it would tell what there is."""
    office = Office.open(tmp_path)
    files, gateway = office.issue(SERVER), office.issue("gateway")

    async def offered(reflection: bool | None) -> bool:
        async with serve_tls(files, reflection=reflection) as worker:
            credentials = grpc.ssl_channel_credentials(
                gateway.ca.read_bytes(), gateway.key.read_bytes(), gateway.certificate.read_bytes()
            )
            async with grpc.aio.secure_channel(f"127.0.0.1:{worker.port}", credentials) as channel:
                call: Any = channel.stream_stream(f"/{V1_NAME}/ServerReflectionInfo")(timeout=5)
                await call.done_writing()
                return await call.code() is grpc.StatusCode.OK

    assert not await offered(None)
    assert await offered(True)


async def test_a_rotation_reaches_old_and_new_clients(tmp_path: Path) -> None:
    """Whoever connects after it meets the new certificate; the authority may change with it."""
    office = Office.open(tmp_path)
    tls = client_tls(office.issue("gateway"))
    async with serve_tls(office.issue(SERVER)) as worker, client_to(worker.port, tls) as client:
        await until_serving(client.hop)
        fresh = Office.open(tmp_path, "its successor")
        rotate(fresh, SERVER, "gateway")
        await asyncio.sleep(1.5)
        async with client_to(worker.port, client_tls(fresh.issue("gateway"))) as newcomer:
            await until_serving(newcomer.hop)
            await newcomer.embed(["a"])
        await client.embed(["a"])
    assert tls.identity.version == 2
