"""The gateway's tax: requests per second of the whole gateway over those of a bare one, before the same echo worker."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from bench.load import Lane, closed_loop, connected, post
from bench.measure import Round, Series, Side, Tell, interleave, paired_spread
from bench.options import Options
from bench.processes import Program, Running, free_port, running
from bench.report import Goal, Row
from bench.texts import Length, random_texts

CONCURRENCIES = (1, 32)
_AGAINST = "bare FastAPI"
_GOAL = Goal(at_least=0.9)
_REQUESTS = 64
_WARM_SECONDS = 1.0


def gateway_program(python: Path, worker: str = "", variables: Mapping[str, str] | None = None) -> Program:
    """The gateway as it is run, on a free port, with every hop at ``worker``; empty means where nothing answers.

    ``variables`` are further settings.
    """
    port = free_port()
    target = worker or f"127.0.0.1:{free_port()}"
    services = ("EMBEDDING_SERVICE_URL", "RERANKING_SERVICE_URL", "GPU_SERVICE_URL", "LLM_SERVICE_URL")
    return Program(
        name="The gateway",
        command=[python, "-m", "gateway"],
        port=port,
        variables={
            "GATEWAY_PORT": str(port),
            "GATEWAY_HOST": "127.0.0.1",
            **dict.fromkeys(services, target),
            **(variables or {}),
        },
        ready_path="/health/ready",
    )


def echo_program(python: Path, variables: Mapping[str, str] | None = None) -> Program:
    """A worker that does no work, on a free port; ``variables`` may name its certificate."""
    port = free_port()
    command: list[str | Path] = [python, "-m", "bench.bare", "echo", "--port", str(port)]
    return Program(name="The echo worker", command=command, port=port, variables=variables or {})


def _front_program(python: Path, worker: str) -> Program:
    port = free_port()
    command: list[str | Path] = [python, "-m", "bench.bare", "front", "--port", str(port), "--worker", worker]
    return Program(name="The bare gateway", command=command, port=port, ready_path="/health/ready")


async def measure(options: Options, gateway_python: Path, tell: Tell) -> list[Row]:
    """The rows of the tax. Starts its own processes, so no mesh need run.

    Raises:
        DidNotStart: one of them did not start.
    """
    rows: list[Row] = []
    async with AsyncExitStack() as stack:
        echo = echo_program(gateway_python)
        worker = f"127.0.0.1:{echo.port}"
        await stack.enter_async_context(running(echo))
        front = await stack.enter_async_context(running(_front_program(gateway_python, worker)))
        whole = await stack.enter_async_context(running(gateway_program(gateway_python, worker)))
        requests = {each.name: requests_to(each.url) for each in (whole, front)}
        for concurrency in CONCURRENCIES:
            tell(f"gateway tax, concurrency {concurrency}")
            lanes = {
                each.name: await stack.enter_async_context(connected(each.url, concurrency)) for each in (whole, front)
            }
            sides = {
                "gateway": side(whole, lanes[whole.name], requests[whole.name], options.seconds),
                "bare": side(front, lanes[front.name], requests[front.name], options.seconds),
            }
            for warm in (whole, front):
                await side(warm, lanes[warm.name], requests[warm.name], min(_WARM_SECONDS, options.seconds))()
            series = await interleave(sides, rounds=options.rounds, unit="requests/s", tell=tell)
            rows.extend(_rows(concurrency, series["gateway"], series["bare"]))
    return rows


def requests_to(url: str, *, key: str = "") -> list[bytes]:
    """Whole requests for one embedding each; ``key`` is the API key where one is asked for."""
    return [
        post(url, "/v1/embeddings", {"model": "", "input": text, "encoding_format": "base64"}, key=key)
        for text in random_texts(_REQUESTS, Length.SHORT)
    ]


def side(process: Running, lanes: Sequence[Lane], requests: Sequence[bytes], seconds: float) -> Side:
    """One round of a gateway's, in which so many lanes keep one request each in flight."""

    async def send(lane: int, number: int) -> float:
        await lanes[lane].ask(requests[number % len(requests)])
        return 1.0

    async def once() -> Round:
        return await closed_loop(send, concurrency=len(lanes), seconds=seconds, server_cpu=process.cpu_seconds)

    return once


def _rows(concurrency: int, whole: Series, bare: Series) -> list[Row]:
    at = f"concurrency {concurrency}"
    rows = [
        Row(
            part="gateway", what=f"requests, {at}", unit="/s", mesh=whole.rate, baseline=bare.rate, against=_AGAINST,
            spread=paired_spread(whole, bare), goal=_GOAL,
            details={
                "mesh_p50_ms": whole.latency(0.5) * 1000, "mesh_p99_ms": whole.latency(0.99) * 1000,
                "baseline_p50_ms": bare.latency(0.5) * 1000, "baseline_p99_ms": bare.latency(0.99) * 1000,
                "generator_cores": whole.generator_share,
                "generator_us_per_request": whole.generator_seconds_per_request * 1e6,
            },
        )
    ]  # fmt: skip
    rows.extend(cpu_rows("gateway", f"CPU time of one request, {at}", whole, bare, against=_AGAINST))
    return rows


def cpu_rows(part: str, what: str, mesh: Series, baseline: Series, *, against: str) -> list[Row]:
    """What a request costs the process in front; none where the system does not say what a process used."""
    if sys.platform != "linux":
        return []
    return [
        Row(
            part=part, what=what, unit="µs", mesh=mesh.server_seconds_per_unit * 1e6,
            baseline=baseline.server_seconds_per_unit * 1e6, against=against, smaller_is_better=True,
        )
    ]  # fmt: skip
