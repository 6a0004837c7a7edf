"""Starting a mesh: install what is missing, prepare the models, start the processes, wait until they serve."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from ops.docker import life as containers
from ops.docker.engine import why_not
from ops.local.certificates import ensure_certificates, files_of, refuse_others
from ops.local.closing import closing_words
from ops.local.console import Console, render_table
from ops.local.environments import Installer, engine_environment, has_cuda, mesh_environments, redis_environments
from ops.local.failures import OperatorError
from ops.local.layout import Layout
from ops.local.models import prepare_models
from ops.local.ports import refuse_taken
from ops.local.processes import ignore_interrupts, marked
from ops.local.record import Record, exclusive
from ops.local.status import KEY_VARIABLE, fetch, unlocked
from ops.local.stop import bring_down
from ops.local.supervisor import Supervisor, launch
from ops.local.topology import Topology, plan
from ops.local.waiting import Readiness, describe, wait_ready


@dataclass(frozen=True)
class StartOptions:
    """What the command line asks for. ``mode`` is None where the script shall choose."""

    mode: str | None = None
    host: str | None = None
    wait_seconds: float = 300.0
    torch_index_url: str = ""
    tls: bool = False


def start(options: StartOptions, layout: Layout, console: Console, environ: Mapping[str, str]) -> int:
    """Bring the mesh up. Returns 0 when something usable runs, also where a capability does not serve; otherwise 1.

    A start that fails or is interrupted leaves no process behind. One whose gateway answers and of which at least one
    capability serves stays up: the rest is named with its reason, and the supervisor goes on trying.
    """
    if options.tls and options.mode == containers.MODE:
        # Rather than plaintext, for somebody who asked for none.
        raise OperatorError(
            "--tls makes certificates for processes of this machine, and containers cannot read those.",
            hint="Leave out --mode docker; or --tls, and give each container a certificate: see docs/containers.md.",
        )
    topology = plan(environ, host=options.host, certificates=files_of(layout) if options.tls else None)
    if options.tls:
        refuse_others(environ)
    with exclusive(layout, "start"):
        record = Record.read(layout.record)
        if record is not None and _is_running(record, layout):
            return _report_running(record, console)
        if record is not None:
            _clear_crashed(record, layout, console)
        if choose_mode(options.mode, console) == containers.MODE:
            wished = containers.Wishes(options.torch_index_url, options.wait_seconds, options.tls)
            return containers.start(wished, topology, layout, console, environ)
        refuse_taken(topology.listeners)
        engines = [
            engine_environment(program.engine, torch_index_url=options.torch_index_url, cuda=has_cuda())
            for program in topology.programs
            if program.engine
        ]
        wanted = (*mesh_environments(options.torch_index_url), *redis_environments(environ), *engines)
        Installer(layout, console, environ).ensure(wanted)
        if options.tls:
            ensure_certificates(layout, console, environ)
        prepare_models(layout, topology, console, environ)
        refuse_taken(topology.listeners)  # installing takes minutes, and ports do not wait
        return _run(options, topology, layout, console, environ)


def _run(
    options: StartOptions, topology: Topology, layout: Layout, console: Console, environ: Mapping[str, str]
) -> int:
    ports = tuple(listener.port for listener in topology.listeners)
    record = Record(run_id=secrets.token_hex(16), mode="local", gateway_url=topology.gateway_url, ports=ports)
    try:
        record.write(layout.record)
        # The key is this command's own: no process that it starts needs to know it.
        inherited = {name: value for name, value in environ.items() if name != KEY_VARIABLE}
        supervisor = launch(topology, layout, run_id=record.run_id, environ=inherited)
        console.say("Starting " + ", ".join(topology.names))
        readiness = wait_ready(
            console,
            state=lambda: unlocked(fetch(topology.gateway_url, timeout=2.0)),
            processes=supervisor.processes,
            limit_seconds=options.wait_seconds,
        )
    except BaseException:
        ignore_interrupts()  # a second Ctrl-C must not cut this off
        with console.step("Stopping what had been started"):
            bring_down(layout, record)
        raise
    return _report_started(readiness, record, topology, layout, console)


def _report_started(readiness: Readiness, record: Record, topology: Topology, layout: Layout, console: Console) -> int:
    if not readiness.usable:
        ignore_interrupts()  # a Ctrl-C must not cut this off
        states = [f"  {name}: {state}" for name, state in describe(readiness).items()]
        bring_down(layout, record)
        raise OperatorError(
            f"Nothing usable came up within {readiness.seconds:.0f} s, so all was stopped again:\n" + "\n".join(states),
            hint=f"Each process says why in {layout.logs}/<process>.log.",
        )
    for line in closing_words(readiness, topology, layout):
        console.say(line)
    return 0


def _report_running(record: Record, console: Console) -> int:
    console.say(f"The mesh is already running ({record.mode} mode): {record.gateway_url}")
    state = fetch(record.gateway_url, timeout=5.0)
    rows = [[hop.name, hop.health, hop.model or hop.reason] for hop in state.hops]
    for line in (
        render_table(["HOP", "HEALTH", "MODEL"], rows) if rows else [f"Its gateway does not answer: {state.error}"]
    ):
        console.say(f"  {line}")
    console.say("To start it anew: ./scripts/stop_torch_isolation.sh && ./scripts/start_torch_isolation.sh")
    return 0


def _clear_crashed(record: Record, layout: Layout, console: Console) -> None:
    left = marked(record.run_id)
    with console.step("Clearing what a crashed run left behind") as step:
        bring_down(layout, record)
        step.outcome = f"ended {len(left)} processes" if left else "nothing was left"


def choose_mode(asked: str | None, console: Console) -> str:
    """The mode to start in: ``local`` unless ``docker`` is asked for, so that a start is the same on every machine."""
    if asked is None and not why_not():
        console.say("Docker answers; --mode docker runs the mesh in containers. Starting as processes of this machine.")
    return asked or "local"


def _is_running(record: Record, layout: Layout) -> bool:
    return containers.runs() if record.mode == containers.MODE else Supervisor(layout.supervisor_socket).answers()
