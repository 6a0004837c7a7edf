"""Development certificates: one for each process, kept while they are good, for this user's eyes alone."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest

from mesh.tls.certificates import TlsFiles, read
from ops.local.certificates import refuse_others
from ops.local.console import Console
from ops.local.failures import OperatorError
from ops.local.health import find_problems
from ops.local.layout import Layout
from ops.local.start import StartOptions, start
from ops.local.status import MeshState, hop_state
from ops.local.topology import plan
from ops.tls.__main__ import main
from ops.tls.development import Wanted, make_all
from ops.tls.names import PROCESSES, CertificateFiles


def files_of(folder: Path, name: str) -> TlsFiles:
    """The three files of a process."""
    files = CertificateFiles(folder)
    return TlsFiles(files.ca, files.certificate(name), files.key(name))


def test_every_process_gets_a_certificate_of_its_own_name(tmp_path: Path) -> None:
    """Good for its container, for this machine, and for the hosts that were asked for; not for another process."""
    assert make_all(tmp_path, Wanted(days=9, hosts=["mesh.example", "10.0.0.7"])) == list(PROCESSES)
    for name in PROCESSES:
        material = read(files_of(tmp_path, name), now=time.time())
        assert material.names == (name, "localhost", "127.0.0.1", "::1", "mesh.example", "10.0.0.7")
        assert material.is_from_ca
        assert 8.9 < (material.not_after - time.time()) / 86400 <= 9


def test_keys_are_for_this_user_alone(tmp_path: Path) -> None:
    """The folder too; and no half-written file is left."""
    make_all(tmp_path / "tls", Wanted())
    for key in (tmp_path / "tls").glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    assert not list((tmp_path / "tls").glob("*.new"))


def test_made_again_they_are_renewed_under_the_same_authority(tmp_path: Path) -> None:
    """So that a mesh that runs takes them one by one; a new authority has to be asked for."""
    make_all(tmp_path, Wanted())
    ca, gateway = (tmp_path / "ca.pem").read_bytes(), (tmp_path / "gateway.pem").read_bytes()
    make_all(tmp_path, Wanted())
    assert (tmp_path / "ca.pem").read_bytes() == ca
    assert (tmp_path / "gateway.pem").read_bytes() != gateway
    make_all(tmp_path, Wanted(fresh_authority=True))
    assert (tmp_path / "ca.pem").read_bytes() != ca
    assert read(files_of(tmp_path, "gateway"), now=time.time()).is_from_ca


def test_a_start_makes_what_is_missing_or_ends_soon_and_nothing_else(tmp_path: Path) -> None:
    """Whoever starts the mesh every morning has no new certificates every morning."""
    keeping = Wanted(keep_days=14)
    assert make_all(tmp_path, keeping) == list(PROCESSES)
    assert make_all(tmp_path, keeping) == []
    (tmp_path / "gateway.key").unlink()
    assert make_all(tmp_path, keeping) == ["gateway"]
    assert make_all(tmp_path, Wanted(hosts=["mesh.example"], keep_days=14)) == list(PROCESSES)
    (tmp_path / "ca.key").write_text("spoilt")
    assert make_all(tmp_path, keeping) == list(PROCESSES)
    make_all(tmp_path, Wanted(days=10))
    assert make_all(tmp_path, keeping) == list(PROCESSES)


def test_the_command_makes_further_clients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For a program with rules of its own."""
    assert main(["--folder", str(tmp_path), "--client", "bulk", "--days", "2"]) == 0
    assert read(files_of(tmp_path, "bulk"), now=time.time()).names[0] == "bulk"
    assert "bulk" in capsys.readouterr().out


def test_each_process_is_started_with_its_own_certificate(tmp_path: Path) -> None:
    """The gateway expects each worker's own name, since all of them share a host; what is elsewhere has its host's."""
    files = CertificateFiles(tmp_path)
    topology = plan({"LLM_SERVICE_URL": "models.example:50054"}, certificates=files)
    for program in topology.programs:
        name = {"embedding": "embedding-services", "reranking": "reranking-services"}.get(program.name, program.name)
        assert program.variables["MESH_TLS_CA"] == str(files.ca)
        assert program.variables["MESH_TLS_CERTIFICATE"] == str(tmp_path / f"{name}.pem")
        assert program.variables["MESH_TLS_KEY"] == str(tmp_path / f"{name}.key")
    assert json.loads(topology.programs[-1].variables["MESH_TLS_SERVER_NAMES"]) == {
        "embedding": "embedding-services",
        "reranking": "reranking-services",
        "chunking": "gpu-services",
        "gpu": "gpu-services",
    }
    assert not any("TLS" in name for program in plan({}).programs for name in program.variables)


def test_certificates_of_ones_own_are_not_mixed_with_development_ones() -> None:
    """Which were meant, nobody could tell."""
    with pytest.raises(OperatorError, match="MESH_TLS_CA"):
        refuse_others({"MESH_TLS_CA": "/etc/mesh/ca.pem"})
    refuse_others({"MESH_TLS_CHECK_SECONDS": "5"})


def test_containers_do_not_start_in_plaintext_where_certificates_were_asked_for(tmp_path: Path) -> None:
    """The development ones are for processes; a start that left them out would say that hops are safe."""
    layout = Layout.from_environment({"MESH_HOME": str(tmp_path)})
    with pytest.raises(OperatorError, match="for processes of this machine") as refused:
        start(StartOptions(mode="docker", tls=True), layout, Console(), {})
    assert "docs/containers.md" in refused.value.hint


def test_the_health_script_names_a_certificates_problem() -> None:
    """Not as a worker that is down, which a restart would mend."""
    endpoint = {
        "endpoint": "127.0.0.1:50051",
        "health": "UNREACHABLE",
        "reason_code": "TLS_PEER_EXPIRED",
    }
    hop = hop_state(
        {
            "name": "embedding",
            "serving": False,
            "endpoints": [endpoint],
            "breaker": {"state": "closed"},
            "reason": "The worker's certificate has expired. Renew it there.",
        }
    )
    (problem,) = find_problems(MeshState(ready=True, hops=(hop,)), logs=Path("/logs"))
    assert "has expired" in problem
    assert "nothing answers" not in problem
