"""Stopping a mesh: everything that its start started, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from ops.docker import life as containers
from ops.local.console import Console
from ops.local.layout import Layout
from ops.local.ports import is_free
from ops.local.processes import end_marked, marked, wait_until
from ops.local.record import Record, exclusive
from ops.local.supervisor import STOP_SECONDS, Supervisor
from ops.local.topology import GATEWAY, LOOPBACK


@dataclass(frozen=True)
class Stopped:
    """What a stop did: whether the supervisor did it, and which processes were left over and had to be ended."""

    by_supervisor: bool
    left_over: tuple[int, ...]


def bring_down(layout: Layout, record: Record) -> Stopped:
    """End every process of the recorded mesh, and forget it. Returns when none is left."""
    supervisor = Supervisor(layout.supervisor_socket)
    by_supervisor = supervisor.answers()
    if by_supervisor:
        supervisor.shut_down(first=GATEWAY, patience_seconds=STOP_SECONDS)
        # The workers stop side by side, so their longest stop is the bound; the rest is the supervisor's own end.
        wait_until(lambda: not supervisor.answers(), seconds=STOP_SECONDS + 10)
        wait_until(lambda: not marked(record.run_id), seconds=1)
    left_over = end_marked(record.run_id, grace_seconds=10)
    for path in layout.transient:
        path.unlink(missing_ok=True)
    return Stopped(by_supervisor, tuple(left_over))


def stop(layout: Layout, console: Console) -> int:
    """Stop the mesh and say so. Returns the exit code: 0 when nothing of it runs, 1 when something still does."""
    if not layout.run.exists():
        console.say("The mesh is not running.")
        return 0
    with exclusive(layout, "stop"):
        record = Record.read(layout.record)
        if record is None:
            console.say("The mesh is not running.")
            return 0
        if record.mode == containers.MODE:
            return _stop_containers(layout, console)
        with console.step("Stopping the mesh") as step:
            stopped = bring_down(layout, record)
            step.outcome = "stopped"
        if stopped.left_over and not stopped.by_supervisor:
            pids = ", ".join(str(pid) for pid in stopped.left_over)
            console.say(f"The supervisor was gone; ended what it had left behind (processes {pids}).")
        if still := marked(record.run_id):
            console.say(f"These processes do not end: {', '.join(str(pid) for pid in still)}.")
            console.say("They are in the kernel's hands (a hung device or disk); a restart of the machine ends them.")
            return 1
        if held := [port for port in record.ports if not is_free(LOOPBACK, port)]:
            console.say(f"Stopped, but something else listens on {', '.join(str(port) for port in held)}.")
        return 0


def _stop_containers(layout: Layout, console: Console) -> int:
    with console.step("Stopping the mesh's containers") as step:
        gone = containers.bring_down(layout)
        step.outcome = "stopped" if gone else "not all of them are gone"
    if not gone:
        console.say("Look with `docker ps`; when the engine answers again, run this again.")
    return 0 if gone else 1
