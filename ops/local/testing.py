"""A mesh for tests: started by the real scripts, with state and ports of its own."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ops.local.layout import CHECKOUT, Layout
from ops.local.ports import is_free
from ops.local.processes import marked
from ops.local.record import Record
from ops.local.supervisor import ProcessState, Supervisor
from ops.local.topology import LOOPBACK, WORKERS, Topology, plan

# Above the range from which systems take the ports of outgoing connections.
_PORTS = range(61000, 65536)
_LONGEST_START_SECONDS = 900


@dataclass(frozen=True)
class LocalMesh:
    """A mesh whose state lies in ``home``; environments and models are those of the checkout."""

    home: Path
    environ: Mapping[str, str]

    @classmethod
    def make(cls, home: Path, **variables: str) -> LocalMesh:
        """A mesh on free ports, not started. ``variables`` reach its processes."""
        shared = Layout.from_environment(os.environ)
        names = ["GATEWAY_PORT"]
        names += [f"{worker.prefix}{kind}" for worker in WORKERS for kind in ("PORT", "METRICS_PORT")]
        ports = dict(zip(names, map(str, free_ports(len(names))), strict=True))
        state = {"MESH_HOME": str(home), "MESH_ENVS": str(shared.envs), "MESH_MODELS": str(shared.models)}
        return cls(home, {**os.environ, **ports, **state, **variables})

    @property
    def topology(self) -> Topology:
        """What runs where."""
        return plan(self.environ)

    @property
    def url(self) -> str:
        """The gateway's address."""
        return self.topology.gateway_url

    @property
    def ports(self) -> tuple[int, ...]:
        """Every port that the mesh listens on."""
        return tuple(listener.port for listener in self.topology.listeners)

    @property
    def layout(self) -> Layout:
        """Where its state lies."""
        return Layout.from_environment(self.environ)

    def target(self, worker: str) -> str:
        """The gRPC address of a worker by its process's name."""
        port = next(f"{each.prefix}PORT" for each in WORKERS if each.name == worker)
        return f"{LOOPBACK}:{self.environ[port]}"

    def script(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``scripts/<name>.sh`` to its end."""
        return subprocess.run(  # noqa: S603 - the project's own scripts
            [str(CHECKOUT / "scripts" / f"{name}.sh"), *arguments],
            env=dict(self.environ),
            capture_output=True,
            text=True,
            check=False,
            timeout=_LONGEST_START_SECONDS,
        )

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Start it."""
        return self.script("start_torch_isolation", *arguments)

    def stop(self) -> subprocess.CompletedProcess[str]:
        """Stop it."""
        return self.script("stop_torch_isolation")

    def health(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Check it."""
        return self.script("check_torch_isolation_health", *arguments)

    def processes(self) -> dict[str, ProcessState]:
        """The supervisor's account of its processes."""
        return Supervisor(self.layout.supervisor_socket).processes()

    def pids(self) -> list[int]:
        """Every process of this mesh, whoever started it; empty when it is stopped."""
        record = Record.read(self.layout.record)
        return marked(record.run_id) if record else []

    def log(self, process: str) -> str:
        """What a process has logged."""
        return self.layout.log_of(process).read_text(errors="replace")


def free_ports(count: int) -> list[int]:
    """Different ports on which nothing listens."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):  # so that tests side by side do not choose the same
        if is_free(LOOPBACK, port):
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"Fewer than {count} ports are free.")
