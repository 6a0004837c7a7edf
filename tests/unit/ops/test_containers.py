"""The mesh in containers, as far as it is decided before an engine is asked."""

from __future__ import annotations

import ast
import io
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.docker import images
from ops.docker.composition import (
    BASE_FILE,
    FOLDER,
    GPU_FILE,
    MODELS,
    SERVICES,
    TLS_FILE,
    handed_on,
    write_additions,
)
from ops.docker.fill_models import take_compiled
from ops.docker.life import refuse_shared_certificates
from ops.docker.requirements import requirements
from ops.local.console import Console
from ops.local.failures import OperatorError
from ops.local.layout import CHECKOUT
from ops.local.start import choose_mode
from ops.local.topology import WORKERS

_SHARED_UNTIL = "# -- shared up to here"
WORKER_FILES = [FOLDER / name / "Dockerfile" for name in (*(s.name for s in SERVICES if s.name != "gateway"), MODELS)]
NAMES = ["gateway", "gpu-services", "embedding-services", "reranking-services", "llm-services"]


@pytest.fixture
def composition() -> dict[str, Any]:
    """The Compose file."""
    document: dict[str, Any] = yaml.safe_load(BASE_FILE.read_text())
    return document


def test_what_the_workers_share_is_written_alike_in_every_dockerfile() -> None:
    """The same words are built once by every builder; a word of difference would build torch's environment twice."""
    shared = {path.read_text().partition("\nARG BASE_IMAGE")[2].partition(_SHARED_UNTIL)[0] for path in WORKER_FILES}
    assert len(shared) == 1
    assert "pip --python /opt/mesh/workers/bin/python install" in shared.pop()


def test_no_two_dockerfiles_are_of_one_size() -> None:
    """BuildKit takes a file of the same name, size and time for one that it has, and a checkout's have the same time:
    with the size of embedding's, reranking's image was built from embedding's Dockerfile.

    https://github.com/moby/buildkit/issues/1368
    """
    sizes = [path.stat().st_size for path in (*WORKER_FILES, FOLDER / "gateway" / "Dockerfile")]
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("path", [*WORKER_FILES, FOLDER / "gateway" / "Dockerfile"], ids=lambda path: path.parent.name)
def test_dockerfiles_hold_nothing_that_one_of_the_builders_does_not_know(path: Path) -> None:
    """No mounts, no here-documents, no syntax line: the classic builder builds them as BuildKit does."""
    text = path.read_text()
    assert "--mount" not in text
    assert "<<" not in text
    assert "# syntax" not in text
    assert "--chmod" not in text
    stages = text.count("\nFROM ")
    assert stages >= 3, "the tools of the build stay in stages that are not shipped"
    last = text.rpartition("\nFROM ")[2]
    assert "USER 10001:10001" in last
    assert " pip " not in last
    assert "apt-get" not in last


def test_the_services_are_called_as_the_guide_calls_them(composition: dict[str, Any]) -> None:
    """Service, container and Dockerfile of each have its name, and the tables of the scripts know them all."""
    assert [name for name in composition["services"] if name != MODELS] == [
        "gpu-services", "embedding-services", "reranking-services", "llm-services", "gateway",
    ]  # fmt: skip
    assert sorted(service.name for service in SERVICES) == sorted(NAMES)
    for name in NAMES:
        service = composition["services"][name]
        assert service["container_name"] == name
        assert service["build"]["dockerfile"] == f"ops/docker/{name}/Dockerfile"
        assert service["healthcheck"] if "healthcheck" in service else "HEALTHCHECK" in _dockerfile(name)


def test_every_container_is_locked_in_and_bounded(composition: dict[str, Any]) -> None:
    """Read-only, without capabilities and new privileges, with a memory limit that swap does not stretch."""
    for name, service in composition["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"] == service["memswap_limit"], name
        assert service["restart"] == ("no" if name == MODELS else "unless-stopped"), name
        assert "privileged" not in service, name


def test_only_this_machine_reaches_what_is_published(composition: dict[str, Any]) -> None:
    """Every port is published on loopback, unless the operator says otherwise of the gateway's."""
    for name, service in composition["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("${GATEWAY_HOST:-127.0.0.1}:" if name == "gateway" else "127.0.0.1:"), name


def test_the_gateway_starts_without_keys_on_this_machine_alone(composition: dict[str, Any]) -> None:
    """It is told where its port is published; nothing says for it that anyone may ask."""
    gateway = composition["services"]["gateway"]
    (port,) = gateway["ports"]
    assert port == f"{gateway['environment']['GATEWAY_PUBLISHED_HOST']}:${{GATEWAY_PORT:-8000}}:8000"
    assert "GATEWAY_HOST=0.0.0.0" in _dockerfile("gateway")
    for text in (BASE_FILE.read_text(), _dockerfile("gateway")):
        assert not re.search(r"^\s*GATEWAY_KEYS__OPEN_TO_ANYONE", text, re.MULTILINE)


def test_each_worker_has_the_same_port_on_this_machine_as_in_local_mode(composition: dict[str, Any]) -> None:
    """What is written about ports holds in both modes."""
    for worker in WORKERS:
        name = next(service.name for service in SERVICES if service.process == worker.name)
        (port,) = composition["services"][name]["ports"]
        assert port == f"127.0.0.1:${{{worker.prefix}PORT:-{worker.port}}}:50051"
        assert f"{worker.prefix}METRICS_PORT={worker.metrics_port}" in _dockerfile(name)


def test_the_volume_of_models_is_written_by_one_and_read_by_the_others(composition: dict[str, Any]) -> None:
    """What one worker loads, no other can change."""
    mounts = {name: service.get("volumes", []) for name, service in composition["services"].items()}
    assert mounts.pop(MODELS) == ["models:/models"]
    assert mounts.pop("gateway") == ["../../config:/app/config:ro"]
    assert all(volumes == ["models:/models:ro"] for volumes in mounts.values())


def test_gpu_images_differ_by_their_torch_alone() -> None:
    """The file for GPUs changes where torch comes from, hands over a device, and names the images apart."""
    services = yaml.safe_load(GPU_FILE.read_text())["services"]
    for name, service in services.items():
        assert service["build"] == {"args": {"TORCH_INDEX_URL": "${MESH_TORCH_INDEX_URL-}"}}, name
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"
        assert device["capabilities"] == ["gpu"]
        assert set(service) <= {"build", "deploy", "environment", "image", "shm_size"}, name
    assert "gateway" not in services


@pytest.mark.parametrize("cuda", [False, True])
def test_images_are_named_as_the_compose_files_name_them(composition: dict[str, Any], cuda: bool) -> None:
    """So that the sizes of all of them are printed, the gateway's too where the others are built for GPUs."""
    services = composition["services"]
    over = yaml.safe_load(GPU_FILE.read_text())["services"] if cuda else {}
    for name in (*NAMES, MODELS):
        written = over.get(name, services[name])["image"]
        unset, tagged = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", written), re.sub(r"\$\{.*\}", "mine", written)
        assert images.full_name(name, {}, cuda=cuda) == unset
        assert images.full_name(name, {"MESH_IMAGE_TAG": "mine"}, cuda=cuda) == tagged


def test_a_setting_reaches_its_own_process_and_what_prepares_its_model() -> None:
    """By name alone: the value, which may be a secret, is written into no file."""
    environ = {
        "EMBEDDING_MODEL": "owner/name", "LLM_ENGINE_API_KEY": "secret", "GATEWAY_LIMITS__MAX_JSON_BYTES": "1",
        "HF_TOKEN": "secret", "HOME": "/root", "EMBEDDING_PORT": "1", "EMBEDDING_HOST": "0.0.0.0", "REDIS_URL": "redis://r",
    }  # fmt: skip
    additions = handed_on(environ)
    assert additions["embedding-services"] == {"environment": {"EMBEDDING_MODEL": None}}
    assert additions["llm-services"] == {"environment": {"LLM_ENGINE_API_KEY": None}}
    assert additions["gateway"] == {"environment": {"GATEWAY_LIMITS__MAX_JSON_BYTES": None, "REDIS_URL": None}}
    assert additions[MODELS] == {"environment": dict.fromkeys(["EMBEDDING_MODEL", "HF_TOKEN", "LLM_ENGINE_API_KEY"])}
    assert "secret" not in json.dumps(additions)
    assert "gpu-services" not in additions


def test_a_folder_with_a_model_is_mounted_where_it_is_named(tmp_path: Path) -> None:
    """A model's path on this machine is the same path in its worker and in what prepares it, for reading."""
    additions = handed_on({"RERANKING_MODEL": str(tmp_path), "LLM_MODEL": "owner/name"})
    assert additions["reranking-services"]["volumes"] == [f"{tmp_path}:{tmp_path}:ro"]
    assert additions[MODELS]["volumes"] == [f"{tmp_path}:{tmp_path}:ro"]
    assert "volumes" not in additions["llm-services"]


def test_the_folder_of_the_keys_is_mounted_for_the_gateway_alone(tmp_path: Path) -> None:
    """The gateway follows the file, so its folder is mounted: a file that is replaced would not be seen."""
    (tmp_path / "keys.json").write_text("{}")
    additions = handed_on({"GATEWAY_KEYS__FILE": str(tmp_path / "keys.json")})
    assert additions == {
        "gateway": {"environment": {"GATEWAY_KEYS__FILE": None}, "volumes": [f"{tmp_path}:{tmp_path}:ro"]}
    }


def test_each_container_sees_its_own_certificate_alone() -> None:
    """No process can take another's name: it is handed the folder that is called as it is."""
    services = yaml.safe_load(TLS_FILE.read_text())["services"]
    assert sorted(services) == sorted(NAMES)
    for name, service in services.items():
        (volume,) = service["volumes"]
        assert volume.endswith(f"/{name}:/tls:ro")
        assert set(service["environment"]) == {"MESH_TLS_CA", "MESH_TLS_CERTIFICATE", "MESH_TLS_KEY"}


@pytest.mark.parametrize(("environ", "tls"), [({"MESH_TLS_CA": "ca.pem"}, False), ({}, True)])
def test_certificates_of_local_mode_are_not_left_out_without_a_word(environ: dict[str, str], tls: bool) -> None:
    """Who asks for TLS never gets a plaintext mesh."""
    with pytest.raises(OperatorError, match="MESH_CERTIFICATES"):
        refuse_shared_certificates(environ, tls=tls)


def test_without_certificates_nothing_is_refused() -> None:
    """Plaintext between containers of one host is what a start without further words gives."""
    refuse_shared_certificates({}, tls=False)


def test_the_gateway_is_told_where_it_is_published(composition: dict[str, Any]) -> None:
    """What asks for keys beyond this machine decides by the address on which the port is published."""
    gateway = composition["services"]["gateway"]
    assert gateway["environment"]["GATEWAY_PUBLISHED_HOST"] == "${GATEWAY_HOST:-127.0.0.1}"
    assert gateway["ports"] == ["${GATEWAY_HOST:-127.0.0.1}:${GATEWAY_PORT:-8000}:8000"]


def test_without_settings_the_file_is_still_one_that_compose_takes(tmp_path: Path) -> None:
    """Both versions refuse a file without services."""
    written = json.loads(write_additions(tmp_path / "run" / "additions.yml", {}).read_text())
    assert list(written["services"]) == ["gateway"]


def test_requirements_are_the_projects_own() -> None:
    """An image installs what pyproject says, the shared ones first, and each once."""
    text = (CHECKOUT / "pyproject.toml").read_text()
    gateway, llm = requirements(text, ["gateway"]), requirements(text, ["llm"])
    assert any(each.startswith("fastapi") for each in gateway)
    assert not any(each.startswith(("torch", "numpy")) for each in (*gateway, *llm))
    assert gateway[0].startswith("grpcio==")
    assert requirements(text, ["workers", "llm"]).count("tokenizers>=0.23,<1") == 1
    with pytest.raises(KeyError):
        requirements(text, ["nothing"])


def test_what_the_llm_worker_needs_alone_is_what_it_needs_beside_others() -> None:
    """In its own environment it gets the versions that it gets among the workers."""
    text = (CHECKOUT / "pyproject.toml").read_text()
    alone, among_others = (set(requirements(text, [extra])) for extra in ("llm", "workers"))
    assert alone <= among_others
    assert set(requirements(text, ["tls"])) <= alone, "it reads certificates as they do"


def test_torch_comes_from_where_the_operator_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index named, also as nothing, holds; CUDA builds are PyPI's; else PyTorch's own for CPUs, if it answers."""

    def index(environ: dict[str, str], *, asked: str = "", cuda: bool = False) -> str:
        return images.torch_index(environ, asked=asked, cuda=cuda, console=Console(io.StringIO()))

    monkeypatch.setattr(images, "CPU_TORCH_INDEX", "https://127.0.0.1:9")  # the port of discard: nothing answers
    assert index({}, asked="https://i") == "https://i"
    assert index({"MESH_TORCH_INDEX_URL": "https://j"}) == "https://j"
    assert index({"MESH_TORCH_INDEX_URL": ""}) == ""
    assert index({}, cuda=True) == ""
    assert index({}) == ""


def test_a_compiled_engine_is_taken_to_the_volume_once(tmp_path: Path) -> None:
    """It arrives whole, for all to run and nobody else to write, and one that is there stays."""
    (tmp_path / "prepared" / "native").mkdir(parents=True)
    (tmp_path / "prepared" / "native" / "engine-1.so").write_bytes(b"new")
    for _ in range(2):
        take_compiled(tmp_path / "prepared", tmp_path / "models")
    (taken,) = (tmp_path / "models" / "native").iterdir()
    assert taken.read_bytes() == b"new"
    assert taken.stat().st_mode & 0o777 == 0o755
    taken.write_bytes(b"there")
    take_compiled(tmp_path / "prepared", tmp_path / "models")
    assert taken.read_bytes() == b"there"


def test_a_start_is_local_unless_it_is_told_otherwise() -> None:
    """What a start does depends on what is asked, and not on what else the machine has installed."""
    words = io.StringIO()
    assert choose_mode(None, Console(words)) == "local"
    assert choose_mode("local", Console(io.StringIO())) == "local"
    assert choose_mode("docker", Console(io.StringIO())) == "docker"


@pytest.mark.parametrize("name", [*NAMES, MODELS])
def test_an_image_holds_all_that_its_programs_import(name: str) -> None:
    """What a module that it runs reaches is copied, and let into the build; the way back is in none of them."""
    text = _dockerfile(name)
    copied = [Path(source) for source in re.findall(r"^COPY (\w+) \w+$", text, re.MULTILINE)]
    lines = (CHECKOUT / ".dockerignore").read_text().splitlines()
    let_in = [line.removeprefix("!") for line in lines if line.startswith("!")]
    programs = re.findall(r'python(?: -m |", "-m", ")([\w.]+)', text.partition(" AS source")[2])
    assert programs
    for path in _reached([each for each in programs if each != "compileall"]):
        assert any(path.is_relative_to(each) for each in copied), f"{path} is not copied"
        assert any(path.match(each) or path.is_relative_to(each) for each in let_in), f"{path} is kept out"
    assert Path("previous") not in copied
    assert "previous" not in let_in


def _reached(modules: list[str]) -> set[Path]:
    """The project's own files that modules import, and what those import."""
    found: set[Path] = set()
    seen: set[str] = set()
    while modules:
        name = modules.pop()
        if name in seen:
            continue
        seen.add(name)
        here = Path(*name.split("."))
        for path in (here.with_suffix(".py"), here / "__init__.py", here / "__main__.py"):
            if (CHECKOUT / path).is_file():
                found.add(path)
                modules += _imported(path)
        modules.append(name.rpartition(".")[0] or name)
    return found


@cache
def _imported(path: Path) -> list[str]:
    """Every name that a file imports, as a module: what is none is no file either."""
    names: list[str] = []
    for node in ast.walk(ast.parse((CHECKOUT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
        elif isinstance(node, ast.Import):
            names += [each.name for each in node.names]
    return names


def _dockerfile(name: str) -> str:
    return (FOLDER / name / "Dockerfile").read_text()
