"""The mesh in containers, for tests: built and started by the scripts that users run, and hurt by the engine."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ops.docker.composition import BASE_FILE, SERVICES
from ops.docker.engine import compose_command, containers, image_bytes, why_not
from ops.docker.images import DEFAULT_BASE
from ops.docker.life import compose_files
from ops.local.layout import CHECKOUT
from ops.local.testing import LocalMesh

PROJECT = "torch-isolation-mesh-tests"
TAG = "tests"
NETWORK = f"{PROJECT}_mesh"
WORKERS = tuple(service.name for service in SERVICES if service.name != "gateway")
_PULL_SECONDS = 120
_BUILD_SECONDS = 1800
_COMPOSE_SECONDS = 400


def docker(*arguments: str, seconds: float = 120.0, check: bool = True) -> str:
    """What a docker command prints. Raises AssertionError with its words where it fails."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=seconds, check=False)
    assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout


def why_skipped(base: str = DEFAULT_BASE) -> str:
    """Why these tests cannot run here; empty where they can."""
    if reason := why_not():
        return reason
    taken = [each.name for each in containers([*WORKERS, "gateway", "mesh-models"]).values() if each.project != PROJECT]
    if taken:
        return f"containers with the mesh's names are there: {', '.join(taken)}"
    if image_bytes(base) is None:
        pulled = subprocess.run(["docker", "pull", "-q", base], capture_output=True, timeout=_PULL_SECONDS, check=False)
        if pulled.returncode:
            return f"the base image {base} is not here and cannot be pulled; MESH_BASE_IMAGE names another"
    return ""


@dataclass(frozen=True)
class Stack:
    """A mesh in containers on free ports of this machine."""

    mesh: LocalMesh

    @classmethod
    def make(cls, home: Path, **variables: str) -> Stack:
        """One that is not started. ``variables`` reach its processes."""
        names = {"COMPOSE_PROJECT_NAME": PROJECT, "MESH_IMAGE_TAG": TAG}
        return cls(LocalMesh.make(home, **names, **variables))

    def changed(self, **variables: str) -> Stack:
        """The same one as other variables see it."""
        return Stack(replace(self.mesh, environ={**self.mesh.environ, **variables}))

    @property
    def url(self) -> str:
        """The gateway's address."""
        return self.mesh.url

    def start(self) -> subprocess.CompletedProcess[str]:
        """Build and start it by the script."""
        return _run([str(CHECKOUT / "scripts" / "start_torch_isolation.sh"), "--mode", "docker"], self, _BUILD_SECONDS)

    def stop(self) -> subprocess.CompletedProcess[str]:
        """Stop it by the script; its models stay."""
        return self.mesh.stop()

    def compose(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A Compose command as the migration guide writes it: on the one file, in this mesh's environment."""
        return _run([*compose_command(), "-f", str(BASE_FILE), *arguments], self, _COMPOSE_SECONDS)

    def anew(self, *names: str) -> None:
        """Bring containers to what the environment says now, as the script started them otherwise."""
        files = compose_files(self.mesh.layout, self.mesh.environ, cuda=False)
        named = [part for file in files for part in ("-f", str(file))]
        up = _run([*compose_command(), *named, "up", "-d", "--no-build", "--no-deps", *names], self, _COMPOSE_SECONDS)
        assert up.returncode == 0, up.stdout + up.stderr

    def forget(self) -> None:
        """Remove what it kept: the volume of models and the network. The images stay, as a cache."""
        self.compose("down", "--volumes", "--timeout", "5")


def _run(command: Sequence[str], stack: Stack, seconds: float) -> subprocess.CompletedProcess[str]:
    environ = dict(stack.mesh.environ)
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=seconds, check=False)


def python_in(container: str, code: str, *, check: bool = True) -> str:
    """What a line of Python prints in a container."""
    return docker("exec", container, "python", "-c", code, check=check).strip()


def wait_for(condition: Callable[[], bool], what: str, *, seconds: float, interval: float = 0.1) -> float:
    """Wait until it holds. Returns the moment on ``time.monotonic()``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(interval)
    return time.monotonic()


def is_healthy(name: str) -> bool:
    """Whether a container's own health probe says so."""
    found = containers([name]).get(name)
    return found is not None and found.health == "healthy"
