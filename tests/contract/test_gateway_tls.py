"""The gateway and its workers with certificates, as processes are told of them: by variables."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from gateway.app import create_app
from gateway.settings import GatewaySettings
from mesh.healthcheck import ask_worker
from mesh.testing import ScriptedEmbedding
from mesh.tls.problems import TlsProblem
from ops.tls.issuing import make_certificate, write_pair
from ops.tls.testing import GOOD, Office, life
from tests.hop.tls_stand import SERVER, serve_tls

EXIT_SETTINGS = 78


def told_of(monkeypatch: pytest.MonkeyPatch, office: Office, name: str) -> None:
    """Give this process the certificate ``name``, and have it expect the embedding worker's own."""
    files = office.issue(name)
    monkeypatch.setenv("MESH_TLS_CA", str(files.ca))
    monkeypatch.setenv("MESH_TLS_CERTIFICATE", str(files.certificate))
    monkeypatch.setenv("MESH_TLS_KEY", str(files.key))
    monkeypatch.setenv("MESH_TLS_SERVER_NAMES", f'{{"embedding": "{SERVER}"}}')


async def asked(port: int, wait_for: str) -> tuple[httpx.Response, dict[str, object], dict[str, object]]:
    """A gateway's answer to a request for embeddings, and its status' account of itself and of that hop.

    Args:
        port: the embedding worker's.
        wait_for: the hop's endpoint has this health or reason code by then.
    """
    settings = GatewaySettings.load({}, services={"embedding": {"url": f"127.0.0.1:{port}"}})
    app = create_app(settings)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
        asyncio.timeout(20),
    ):
        while True:
            status = (await client.get("/status")).json()
            hop = next(each for each in status["hops"] if each["name"] == "embedding")
            if wait_for in (hop["endpoints"][0]["health"], hop["endpoints"][0]["reason_code"]):
                break
            await asyncio.sleep(0.05)
        answer = await client.post("/v1/embeddings", json={"input": ["abc"], "encoding_format": "float"})
        return answer, status["gateway"], hop


async def test_the_gateway_calls_its_workers_with_its_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its status tells whose it is, and how long it lasts."""
    office = Office.open(tmp_path)
    told_of(monkeypatch, office, "gateway")
    async with serve_tls(office.issue(SERVER)) as worker:
        answer, gateway, _ = await asked(worker.port, "SERVING")
    assert answer.status_code == 200
    certificate = gateway["certificate"]
    assert isinstance(certificate, dict)
    assert certificate["names"] == ["gateway", "localhost", "127.0.0.1"]
    assert 29 < certificate["days_left"] <= 30
    assert certificate["problem"] is None


async def test_a_certificate_problem_is_named_in_status_and_not_to_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator reads what is wrong with whose certificate; a client reads that it is not its own fault."""
    office = Office.open(tmp_path)
    told_of(monkeypatch, office, "gateway")
    async with serve_tls(Office.open(tmp_path / "elsewhere").issue(SERVER)) as worker:
        answer, _, hop = await asked(worker.port, TlsProblem.PEER_UNKNOWN_CA)
    assert hop["serving"] is False
    assert "authority that MESH_TLS_CA does not hold" in str(hop["reason"])
    assert answer.status_code == 503
    assert SERVER not in answer.text
    assert str(tmp_path) not in answer.text


async def test_a_worker_that_lets_the_gateway_call_nothing_is_no_fault_of_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key is not what is wrong, so it is 503 and not 403; the status says what to change."""
    office = Office.open(tmp_path)
    told_of(monkeypatch, office, "reranking-services")
    scripted = ScriptedEmbedding()
    async with serve_tls(office.issue(SERVER), capabilities=[scripted.capability()]) as worker:
        answer, _, hop = await asked(worker.port, "SERVING")
    assert answer.status_code == 503
    assert "MESH_TLS_ALLOW" in str(hop["reason"])
    assert scripted.calls == 0


async def test_a_worker_is_asked_for_its_health_from_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what shares its certificate, though that carries no name of the loopback address; and never in plaintext."""
    office = Office.open(tmp_path)
    told_of(monkeypatch, office, SERVER)
    async with serve_tls(office.issue(SERVER, also=[])) as worker:

        async def why() -> str:
            return await asyncio.to_thread(ask_worker, f"127.0.0.1:{worker.port}")

        assert await why() == ""
        monkeypatch.setenv("MESH_TLS_KEY", str(tmp_path / "nowhere.key"))
        assert "nowhere.key" in await why()
        for variable in ("MESH_TLS_CA", "MESH_TLS_CERTIFICATE", "MESH_TLS_KEY"):
            monkeypatch.delenv(variable)
        assert "UNAVAILABLE" in await why()


async def test_a_uri_that_comes_first_is_not_taken_for_the_workers_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Authorities of services write who it is before where it is."""
    office = Office.open(tmp_path)
    told_of(monkeypatch, office, SERVER)
    files = office.issue(SERVER)
    pair = make_certificate(["spiffe://mesh/embedding", SERVER], office.authority, life(GOOD))
    write_pair(pair, files.certificate, files.key)
    async with serve_tls(files) as worker:
        assert await asyncio.to_thread(ask_worker, f"127.0.0.1:{worker.port}") == ""


async def test_without_certificates_nothing_about_them_is_loaded() -> None:
    """What is off costs nothing: not cryptography, not the handshakes, neither in the gateway nor in a worker."""
    code = (
        "import sys; from gateway.app import create_app; from gateway.settings import GatewaySettings\n"
        "from mesh.serving import Worker; from mesh.clients import AsyncEmbeddingServiceClient\n"
        "create_app(GatewaySettings.load({}))\n"
        "print([name for name in sys.modules if name.startswith(('cryptography', 'mesh.tls.'))])"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MESH_TLS_")}
    found = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60
    )
    loaded = set(eval(found.stdout))  # noqa: S307 - our own print of a list of names
    assert loaded == {
        "mesh.tls.access",
        "mesh.tls.configured",
        "mesh.tls.lookout",
        "mesh.tls.problems",
        "mesh.tls.settings",
    }


WORKER = """
from pydantic_settings import SettingsConfigDict
from mesh.serving import run
from mesh.settings import WorkerSettings
class Settings(WorkerSettings):
    model_config = SettingsConfigDict(env_prefix="SOME_WORKER_")
    port: int = 0
raise SystemExit(run("some-worker", Settings, lambda settings: []))
"""


@pytest.mark.parametrize("process", [["-m", "gateway"], ["-c", WORKER]], ids=["gateway", "worker"])
@pytest.mark.parametrize("wrong", ["missing", "mismatch", "incomplete"])
def test_a_process_whose_certificates_cannot_be_used_says_so_and_does_not_start(
    process: list[str], wrong: str, tmp_path: Path
) -> None:
    """Exit code 78, and one line that names the variable and the file: never a mesh that quietly speaks plaintext."""
    office = Office.open(tmp_path)
    files = office.issue("me")
    variables = {
        "MESH_TLS_CA": str(files.ca),
        "MESH_TLS_CERTIFICATE": str(files.certificate),
        "MESH_TLS_KEY": str(files.key),
    }
    if wrong == "missing":
        variables["MESH_TLS_KEY"] = str(tmp_path / "nowhere.key")
    elif wrong == "mismatch":
        variables["MESH_TLS_KEY"] = str(office.issue("other").key)
    else:
        del variables["MESH_TLS_CA"]
    ended = subprocess.run(
        [sys.executable, *process],
        env={**os.environ, "GATEWAY_PORT": "0", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == EXIT_SETTINGS, ended.stderr
    (line,) = ended.stderr.strip().splitlines()
    named = {"missing": "nowhere.key", "mismatch": "does not fit", "incomplete": "belong together"}[wrong]
    assert named in line
    assert "Traceback" not in ended.stderr
