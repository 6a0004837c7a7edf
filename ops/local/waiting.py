"""Watching a mesh come up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ops.local.console import Console, render_table
from ops.local.failures import OperatorError
from ops.local.status import KEY_VARIABLE, HopState, MeshState
from ops.local.supervisor import ProcessState
from ops.local.topology import GATEWAY, HOPS_OF

_POLL_SECONDS = 0.25
_PLAIN_REMINDER_SECONDS = 15.0


@dataclass(frozen=True)
class Readiness:
    """How a start ended: whether the gateway answers, and each hop as it was last seen."""

    gateway: bool
    hops: tuple[HopState, ...]
    processes: Mapping[str, ProcessState]
    seconds: float

    @property
    def usable(self) -> bool:
        """Whether there is anything to use: the gateway answers and at least one capability serves."""
        return self.gateway and any(hop.serving for hop in self.hops)

    @property
    def complete(self) -> bool:
        """Whether everything serves."""
        return self.gateway and bool(self.hops) and all(hop.serving for hop in self.hops)

    @property
    def settled(self) -> bool:
        """Whether waiting longer will change nothing: each hop serves, or has said why it will not."""
        wrong = {name for name, process in self.processes.items() if process.misconfigured}
        if GATEWAY in wrong:
            return True
        lost = {hop for name in wrong for hop in HOPS_OF.get(name, ())}
        settled = all(hop.serving or hop.hopeless or hop.name in lost for hop in self.hops)
        return self.gateway and bool(self.hops) and settled


def unlocked(state: MeshState) -> MeshState:
    """The state, where the gateway tells it to us. Otherwise nobody here could say when the mesh has come up.

    Raises:
        OperatorError: the gateway wants a key.
    """
    if state.locked:
        raise OperatorError(f"{state.error}.", hint=f"{KEY_VARIABLE}=mesh_… ./scripts/start_torch_isolation.sh")
    return state


def wait_ready(
    console: Console,
    *,
    state: Callable[[], MeshState],
    processes: Callable[[], Mapping[str, ProcessState]],
    limit_seconds: float,
) -> Readiness:
    """Wait until every hop serves or cannot, or the limit is reached, showing each process on its way."""
    began = time.monotonic()
    view = _View(console)
    while True:
        mesh = state()
        elapsed = time.monotonic() - began
        readiness = Readiness(mesh.ready, mesh.hops, processes(), elapsed)
        view.show(readiness)
        if readiness.settled or elapsed >= limit_seconds:
            return readiness
        time.sleep(_POLL_SECONDS)


class _View:
    """The live table; where there is no terminal, a line for each change."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._height = 0
        self._last: dict[str, str] = {}
        self._reminded = 0.0

    def show(self, readiness: Readiness) -> None:
        states = describe(readiness)
        if self._console.live:
            rows = [[name, state] for name, state in states.items()]
            table = render_table(["PROCESS", f"STATE ({readiness.seconds:.0f} s)"], rows)
            self._height = self._console.redraw([f"  {line}" for line in table], self._height)
            return
        for name, state in states.items():
            if self._last.get(name) != state:
                self._console.say(f"  {readiness.seconds:5.1f} s  {name}: {state}")
        self._last = states
        if readiness.seconds - self._reminded >= _PLAIN_REMINDER_SECONDS and not readiness.settled:
            self._reminded = readiness.seconds
            waiting = [name for name, state in states.items() if state != READY]
            self._console.say(f"  {readiness.seconds:5.1f} s  waiting for {', '.join(waiting)}")


READY = "ready"


def describe(readiness: Readiness) -> dict[str, str]:
    """What each capability, and the gateway, is at, in a word or a sentence."""
    hops = {hop.name: hop for hop in readiness.hops}
    states: dict[str, str] = {}
    for process in readiness.processes.values():
        for name in HOPS_OF.get(process.name, (process.name,)):
            if process.misconfigured:
                states[name] = "its settings are wrong; its log says which"
            elif process.down:
                states[name] = "ended at its start; the supervisor tries again, its log says why"
            elif name == GATEWAY:
                states[name] = READY if readiness.gateway else "starting"
            else:
                states[name] = _describe_hop(hops.get(name))
    for name, hop in hops.items():
        states.setdefault(name, _describe_hop(hop))
    return states


def _describe_hop(hop: HopState | None) -> str:
    if hop is None or hop.health in {"UNREACHABLE", "UNKNOWN"}:
        return "starting"
    if hop.serving:
        return READY
    return f"not serving: {hop.reason}" if hop.hopeless else "loading its model"
