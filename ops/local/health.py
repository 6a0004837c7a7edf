"""Whether the mesh is well: one row a hop, and what to do about one that is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ops.local.console import Console, render_table
from ops.local.layout import Layout
from ops.local.record import Record
from ops.local.status import HopState, MeshState, fetch
from ops.local.topology import HOPS_OF

DEFAULT_GATEWAY = "http://127.0.0.1:8000"
_TIMEOUT_SECONDS = 10.0
_HEADER = ("HOP", "ENDPOINT", "HEALTH", "BREAKER", "PROBE", "MODEL")


def health(layout: Layout, console: Console, *, gateway: str | None, as_json: bool) -> int:
    """Print the state of every hop. Returns 0 when all serve, otherwise 1.

    Args:
        layout: where the record of a mesh started here is, for the gateway's address.
        console: where to print.
        gateway: URL of the gateway to ask; by default the one started here.
        as_json: print one JSON object instead of the table.
    """
    record = Record.read(layout.record)
    url = gateway or (record.gateway_url if record else DEFAULT_GATEWAY)
    state = fetch(url, timeout=_TIMEOUT_SECONDS)
    in_containers = record is not None and record.mode == "docker"
    problems = find_problems(state, logs=layout.logs if gateway is None else None, in_containers=in_containers)
    if as_json:
        hops = [asdict(hop) for hop in state.hops]
        summary = {"gateway": url, "healthy": not problems, "error": state.error, "hops": hops, "problems": problems}
        console.say(json.dumps(summary, indent=2))
    else:
        for line in render(url, state, problems):
            console.say(line)
    return 1 if problems else 0


def render(url: str, state: MeshState, problems: Sequence[str]) -> list[str]:
    """The table, and below it each problem with what to do."""
    gateway = "SERVING" if state.ready else "KEY WANTED" if state.locked else "UNREACHABLE"
    rows = [("gateway", url, gateway, "-", _milliseconds(state.latency_ms), "-")]
    rows += [_row(hop) for hop in state.hops]
    return [*render_table(_HEADER, rows), *([""] if problems else []), *problems]


def _row(hop: HopState) -> tuple[str, str, str, str, str, str]:
    endpoints = ",".join(hop.endpoints)
    return hop.name, endpoints, hop.health, hop.breaker or "-", _milliseconds(hop.probe_ms), hop.model or "-"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def find_problems(state: MeshState, *, logs: Path | None, in_containers: bool = False) -> list[str]:
    """What is wrong, one sentence each, with what to do; empty when all serve.

    Args:
        state: what the gateway says.
        logs: where the processes' logs are, where the mesh is this machine's own.
        in_containers: it is, and Docker keeps them.
    """
    if not state.ready:
        if state.locked:
            return [f"gateway: {state.error}."]
        remedy = "Start the mesh: ./scripts/start_torch_isolation.sh" if logs else "Check the URL and the network."
        return [f"gateway: {state.error}. {remedy}"]
    if not state.hops:
        return ["gateway: it has no hops. Check config/gateway.yaml."]
    return [_problem(hop, logs, in_containers=in_containers) for hop in state.hops if not hop.serving]


def _problem(hop: HopState, logs: Path | None, *, in_containers: bool) -> str:
    process = next((name for name, hops in HOPS_OF.items() if hop.name in hops), hop.name)
    where = f"see {logs}/{process}.log" if logs else "see that worker's log"
    if logs and in_containers:
        where = f"see `docker logs {process.removesuffix('-services')}-services`"
    endpoints = ",".join(hop.endpoints)
    reason = hop.reason.rstrip(".") or "no reason given"
    if hop.health == "SERVING":
        return f"{hop.name}: the circuit breaker is open although {endpoints} serves: calls failed; {where}."
    if hop.misfit:
        return f"{hop.name}: {reason}. New certificate files are taken without a restart; see docs/certificates.md."
    if hop.health == "UNREACHABLE":
        return f"{hop.name}: nothing answers at {endpoints} ({reason}). The supervisor restarts a worker; {where}."
    if hop.hopeless:
        return f"{hop.name}: {reason}. Put that right and start the mesh anew; {where}."
    return f"{hop.name}: not serving yet ({reason}). Wait for it; {where}."
