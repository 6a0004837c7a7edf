"""The Docker engine and Compose, of either version, as commands."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.local.console import Console
from ops.local.failures import OperatorError
from ops.local.processes import Command, run_logged

_ANSWER_SECONDS = 30.0
_HINT = "Start Docker (sudo systemctl start docker), or start in local mode: ./scripts/start_torch_isolation.sh"


def ask(arguments: Sequence[str], *, seconds: float = _ANSWER_SECONDS) -> str | None:
    """What a command prints; None where it is not there, fails, or takes longer."""
    try:
        answer = subprocess.run(  # noqa: S603 - docker, as the operator has it
            arguments, capture_output=True, text=True, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def engine_version() -> str:
    """The version of the Docker engine that answers here; empty where none does."""
    return ask(["docker", "version", "--format", "{{.Server.Version}}"], seconds=10.0) or ""


def compose_command() -> tuple[str, ...]:
    """Compose 2 as Docker's plugin, else version 1; empty where there is none."""
    if ask(["docker", "compose", "version"]) is not None:
        return ("docker", "compose")
    return ("docker-compose",) if shutil.which("docker-compose") else ()


def why_not() -> str:
    """Why containers cannot be run here; empty where they can."""
    if not engine_version():
        return "no Docker engine answers"
    return "" if compose_command() else "there is no Compose (docker compose, or docker-compose)"


@dataclass(frozen=True)
class Compose:
    """Compose on certain files. ``environ`` is what they are filled in from."""

    command: tuple[str, ...]
    files: tuple[Path, ...]
    environ: Mapping[str, str]
    log: Path

    @classmethod
    def found(cls, files: Sequence[Path], environ: Mapping[str, str], log: Path) -> Compose:
        """The one that is installed. Raises OperatorError where there is none, or no engine answers."""
        if reason := why_not():
            raise OperatorError(f"Containers cannot be run here: {reason}.", hint=_HINT)
        return cls(compose_command(), tuple(files), environ, log)

    def run(self, label: str, console: Console, *arguments: str) -> None:
        """Run one of its commands as a step. Raises OperatorError with the end of what it said."""
        with console.step(label) as step:
            run_logged(Command(self._line(arguments), self.files[0].parent, self.environ, self.log), step)

    def call(self, *arguments: str, seconds: float = 120.0) -> bool:
        """Run one of its commands without a word. Returns whether it succeeded."""
        try:
            done = subprocess.run(  # noqa: S603 - docker, as the operator has it
                self._line(arguments), env=dict(self.environ), capture_output=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def _line(self, arguments: Sequence[str]) -> list[str]:
        return [*self.command, *(part for file in self.files for part in ("-f", str(file))), *arguments]


@dataclass(frozen=True)
class Container:
    """A container as the engine sees it: ``status`` in its vocabulary (running, restarting, exited, …)."""

    name: str
    status: str
    project: str = ""
    pid: int = 0
    exit_code: int = 0
    health: str = ""
    out_of_memory: bool = False
    restarts: int = 0


def containers(names: Sequence[str]) -> dict[str, Container]:
    """Those of ``names`` that exist."""
    found = {}
    for name in names:
        answer = ask(["docker", "container", "inspect", name])
        for facts in json.loads(answer) if answer else []:
            found[name] = _container(name, facts)
    return found


def _container(name: str, facts: Mapping[str, Any]) -> Container:
    state = facts["State"]
    return Container(
        name=name,
        status=state["Status"],
        project=(facts["Config"].get("Labels") or {}).get("com.docker.compose.project", ""),
        pid=state["Pid"],
        exit_code=state["ExitCode"],
        health=(state.get("Health") or {}).get("Status", ""),
        out_of_memory=state["OOMKilled"],
        restarts=facts["RestartCount"],
    )


def image_bytes(image: str) -> int | None:
    """An image's size, uncompressed; None where the engine does not hold it."""
    answer = ask(["docker", "image", "inspect", "--format", "{{.Size}}", image])
    return int(answer) if answer else None


def runs_nvidia() -> bool:
    """Whether the engine can hand a GPU to a container."""
    return "nvidia" in (ask(["docker", "info", "--format", "{{json .Runtimes}}"]) or "")
