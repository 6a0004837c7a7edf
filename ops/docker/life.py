"""Starting and stopping the mesh in containers, for the same scripts that start it as processes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.docker.composition import (
    BASE_FILE,
    CERTIFICATES,
    GPU_FILE,
    MODELS,
    PROJECT,
    SERVICES,
    TLS_FILE,
    write_additions,
)
from ops.docker.engine import Compose, Container, ask, containers, engine_version, runs_nvidia
from ops.docker.images import build, size_table, torch_index
from ops.local.closing import closing_words
from ops.local.console import Console
from ops.local.environments import has_cuda
from ops.local.failures import OperatorError
from ops.local.layout import Layout
from ops.local.ports import refuse_taken
from ops.local.processes import ignore_interrupts
from ops.local.record import Record
from ops.local.status import fetch, unlocked
from ops.local.supervisor import ProcessState
from ops.local.topology import GATEWAY, Topology
from ops.local.waiting import Readiness, describe, wait_ready

MODE = "docker"
_STATES = {"created": "STARTING", "running": "RUNNING", "restarting": "BACKOFF", "paused": "RUNNING"}
"""The supervisor's words for the engine's; all others have ended."""
_NAMES = tuple(service.name for service in SERVICES)


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for, as in `ops.local.start.StartOptions`."""

    torch_index_url: str
    wait_seconds: float
    tls: bool = False


def start(asked: Wishes, topology: Topology, layout: Layout, console: Console, environ: Mapping[str, str]) -> int:
    """Build the images, start the containers, wait until they serve, and say so. Returns the exit code.

    A start that fails or is interrupted leaves no container behind.

    Raises:
        OperatorError: no engine or Compose is there, a name or port is taken, an image cannot be built, or nothing
            usable came up.
    """
    refuse_shared_certificates(environ, tls=asked.tls)
    cuda = has_cuda() and runs_nvidia()
    wishes = dict(environ)  # completed below, once it is sure that there is something to build with
    compose = Compose.found(compose_files(layout, wishes, cuda=cuda), wishes, layout.install_log)
    refuse_names_of_others()
    taken = tuple(each for each in topology.listeners if not each.variable.endswith("_METRICS_PORT"))
    refuse_taken(taken)
    console.say(f"Docker {engine_version()}, {' '.join(compose.command)}; details in {layout.install_log}")
    wishes["MESH_TORCH_INDEX_URL"] = torch_index(environ, asked=asked.torch_index_url, cuda=cuda, console=console)
    wishes["GATEWAY_HOST"] = next(each.host for each in topology.listeners if each.process == GATEWAY)
    build(compose, console)
    for line in size_table(environ, cuda=cuda):
        console.say(f"  {line}")
    ports = tuple(each.port for each in taken)
    record = Record(run_id=secrets.token_hex(16), mode=MODE, gateway_url=topology.gateway_url, ports=ports)
    here = [service.name for service in SERVICES if service.process not in topology.elsewhere]
    try:
        record.write(layout.record)
        compose.run("models: found or fetched, engines measured, the demo trained", console, *_fill_models())
        compose.run("containers", console, "up", "-d", "--no-deps", *here)
        readiness = wait_ready(
            console,
            state=lambda: unlocked(fetch(topology.gateway_url, timeout=2.0)),
            processes=lambda: processes(here),
            limit_seconds=asked.wait_seconds,
        )
    except BaseException:
        ignore_interrupts()  # a second Ctrl-C must not cut this off
        with console.step("Stopping what had been started"):
            bring_down(layout, compose)
        raise
    return _report(readiness, topology, layout, console, compose)


def _fill_models() -> Sequence[str]:
    return ("up", "--no-color", "--no-deps", "--exit-code-from", MODELS, MODELS)


def _report(readiness: Readiness, topology: Topology, layout: Layout, console: Console, compose: Compose) -> int:
    if not readiness.usable:
        ignore_interrupts()
        states = [f"  {name}: {state}" for name, state in describe(readiness).items()]
        bring_down(layout, compose)
        raise OperatorError(
            f"Nothing usable came up within {readiness.seconds:.0f} s, so all was stopped again:\n" + "\n".join(states),
            hint="Start it again with --wait-seconds 900 and look into `docker logs <service>` meanwhile.",
        )
    logs = f"Logs: {' '.join(compose.command)} -f {BASE_FILE.relative_to(layout.checkout)} logs -f"
    for line in closing_words(readiness, topology, layout):
        console.say(logs if line.startswith("Logs: ") else line)
    return 0


def compose_files(layout: Layout, environ: Mapping[str, str], *, cuda: bool) -> list[Path]:
    """The Compose files of a start, the one with what it hands on included."""
    additions = write_additions(layout.run / "docker-compose.additions.yml", environ)
    return [BASE_FILE, *([GPU_FILE] if cuda else []), *([TLS_FILE] if environ.get(CERTIFICATES) else []), additions]


def refuse_shared_certificates(environ: Mapping[str, str], *, tls: bool) -> None:
    """Raise OperatorError where certificates are asked for in the way of processes on one machine.

    Left out without a word, the hops would be plaintext.
    """
    if tls or environ.get("MESH_TLS_CA"):
        raise OperatorError(
            "In containers each process gets its certificate from a folder of its own, below the one that "
            f"{CERTIFICATES} names; --tls and MESH_TLS_CA are for local mode.",
            hint="docs/containers.md says how to make them.",
        )


def processes(names: Sequence[str]) -> dict[str, ProcessState]:
    """The containers' states as a supervisor would tell them, by the processes' names."""
    found = containers(names)
    process = {service.name: service.process for service in SERVICES}
    return {process[name]: _state(process[name], found.get(name)) for name in names}


def _state(process: str, container: Container | None) -> ProcessState:
    if container is None:
        return ProcessState(process, "STOPPED", 0)
    state = _STATES.get(container.status, "EXITED")
    return ProcessState(process, state, container.pid, container.exit_code)


def project() -> str:
    """The name under which Compose keeps this mesh together."""
    return os.environ.get("COMPOSE_PROJECT_NAME") or PROJECT


def refuse_names_of_others() -> None:
    """Raise OperatorError where a container that is not this mesh's has one of its names."""
    strangers = [each.name for each in containers([*_NAMES, "mesh-models"]).values() if each.project != project()]
    if strangers:
        raise OperatorError(
            f"Containers with these names exist and are not this mesh's: {', '.join(strangers)}.",
            hint=f"Rename or remove them: docker rm {' '.join(strangers)}",
        )


def runs() -> bool:
    """Whether containers of the mesh run."""
    return any(each.project == project() and each.status in _STATES for each in containers(_NAMES).values())


def bring_down(layout: Layout, compose: Compose | None = None) -> bool:
    """Stop and remove the containers, the gateway first, whose requests still need the others; the models stay.

    Returns whether none is left.
    """
    if compose is None:
        compose = Compose.found([BASE_FILE], os.environ, layout.install_log)
    compose.call("stop", GATEWAY)
    compose.call("rm", "--stop", "--force", *_NAMES, MODELS)
    # Refused while Prometheus or Grafana, which the operator has started, are still on it.
    ask(["docker", "network", "rm", f"{project()}_mesh"])
    for path in layout.transient:
        path.unlink(missing_ok=True)
    return not any(each.project == project() for each in containers(_NAMES).values())
