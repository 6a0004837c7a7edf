"""What keys and certificates cost: a gateway that has them beside the same gateway without, before an echo."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.gateway import CONCURRENCIES, cpu_rows, echo_program, gateway_program, requests_to, side
from bench.load import connected
from bench.measure import Series, Tell, interleave, paired_spread
from bench.options import Options
from bench.processes import DidNotStart, Running, running
from bench.report import Row
from ops.local.layout import CHECKOUT
from ops.tls.names import CERTIFICATE_OF, CertificateFiles

_AGAINST = "the same gateway without"
_PREPARE_SECONDS = 60.0
_PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class _Way:
    """A gateway to be measured: its settings, the worker's, and the key that it asks for."""

    gateway: Mapping[str, str] = field(default_factory=dict)
    worker: Mapping[str, str] = field(default_factory=dict)
    key: str = ""


async def measure(options: Options, gateway_python: Path, tell: Tell) -> list[Row]:
    """The rows. Starts its own processes, so no mesh need run.

    Raises:
        DidNotStart: one of them did not start, or keys or certificates could not be made.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch:
        ways = await asyncio.to_thread(_ways, gateway_python, Path(scratch))
        async with AsyncExitStack() as stack:
            gateways: dict[str, Running] = {}
            for name, way in ways.items():
                echo = echo_program(gateway_python, way.worker)
                await stack.enter_async_context(running(echo))
                program = gateway_program(gateway_python, f"127.0.0.1:{echo.port}", way.gateway)
                gateways[name] = await stack.enter_async_context(running(program))
            for concurrency in CONCURRENCIES:
                tell(f"keys and certificates, concurrency {concurrency}")
                sides = {}
                for name, gateway in gateways.items():
                    lanes = await stack.enter_async_context(connected(gateway.url, concurrency))
                    requests = requests_to(gateway.url, key=ways[name].key)
                    await side(gateway, lanes, requests, min(1.0, options.seconds))()
                    sides[name] = side(gateway, lanes, requests, options.seconds)
                series = await interleave(sides, rounds=options.rounds, unit="requests/s", tell=tell)
                for name in ways:
                    if name != _PLAIN:
                        rows.extend(_rows(name, concurrency, series[name], series[_PLAIN]))
    return rows


def _ways(python: Path, folder: Path) -> dict[str, _Way]:
    keys, tls = folder / "keys.json", CertificateFiles(folder / "tls")
    key = _printed([python, "-m", "gateway.keys", "--file", keys, "add", "--tenant", "bench"])
    _printed([python, "-m", "ops.tls", "--folder", tls.folder])
    return {
        _PLAIN: _Way(),
        "an API key": _Way(gateway={"GATEWAY_KEYS__FILE": str(keys)}, key=key),
        "mutual TLS to the worker": _Way(
            gateway=tls.variables("gateway"), worker=tls.variables(CERTIFICATE_OF["embedding"])
        ),
    }


def _printed(command: Sequence[str | Path]) -> str:
    done = subprocess.run(  # noqa: S603 - our own commands
        command, cwd=CHECKOUT, capture_output=True, text=True, timeout=_PREPARE_SECONDS, check=False
    )
    if done.returncode:
        raise DidNotStart(f"{' '.join(map(str, command[1:4]))} failed:\n{done.stderr}")
    return done.stdout.strip()


def _rows(name: str, concurrency: int, with_it: Series, plain: Series) -> list[Row]:
    at = f"with {name}, concurrency {concurrency}"
    requests = Row(
        part="secured", what=f"requests {at}", unit="/s", mesh=with_it.rate, baseline=plain.rate,
        against=_AGAINST, spread=paired_spread(with_it, plain),
        details={"mesh_p99_ms": with_it.latency(0.99) * 1000, "baseline_p99_ms": plain.latency(0.99) * 1000},
    )  # fmt: skip
    cpu = cpu_rows("secured", f"the gateway's CPU time of a request {at}", with_it, plain, against=_AGAINST)
    return [requests, *cpu]
