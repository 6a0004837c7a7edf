"""What processes use, how quickly they answer for their health, and what they have counted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

INTERVAL_SECONDS = 0.2
_PATIENCE_SECONDS = 5.0
# Counted behind the command's name in /proc/<pid>/stat.
_PARENT, _RSS = 1, 21
_TIMES = slice(11, 15)  # own and, of children that have ended, theirs; user and system each


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and its children use.

    Attributes:
        cpu_seconds: used since they started, by children that have ended too.
        rss_bytes: memory that they hold; pages that they share count for each.
    """

    cpu_seconds: float
    rss_bytes: int


def usage(pid: int) -> Usage:
    """Of a process and all its descendants, now."""
    stats = _stats()
    family: set[int] = set()
    found = {pid}
    while found:
        family |= found
        found = {child for child, fields in stats.items() if int(fields[_PARENT]) in family} - family
    members = [stats[member] for member in family if member in stats]
    ticks = sum(int(each) for fields in members for each in fields[_TIMES])
    pages = sum(int(fields[_RSS]) for fields in members)
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE"))


def _stats() -> dict[int, list[str]]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                found[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
    return found


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a process: when, how long its health took to answer (NaN: it was not SERVING), what it uses."""

    at: float
    seconds: float
    used: Usage


@dataclass(slots=True)
class Vitals:
    """Samples of the watched processes, by name."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def between(self, name: str, begin: float, end: float) -> Sequence[Sample]:
        """The samples of a process in a stretch of ``time.monotonic()``."""
        return [sample for sample in self.samples[name] if begin <= sample.at < end]


@dataclass(frozen=True, slots=True)
class Watched:
    """A process whose health is asked: over HTTP where ``live_url`` is set, else over gRPC.

    Attributes:
        target: of gRPC.
        service: whose health is asked.
    """

    name: str
    pid: int
    live_url: str = ""
    target: str = ""
    service: str = ""


@asynccontextmanager
async def watching(*processes: Watched) -> AsyncIterator[Vitals]:
    """Look at every process five times a second until the block is left."""
    vitals = Vitals({process.name: [] for process in processes})
    tasks = [asyncio.create_task(_watch(process, vitals.samples[process.name])) for process in processes]
    try:
        yield vitals
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(process: Watched, samples: list[Sample]) -> None:
    async with (
        grpc.aio.insecure_channel(process.target or "127.0.0.1:1") as channel,
        httpx.AsyncClient(timeout=_PATIENCE_SECONDS, trust_env=False) as http,
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        question = health_pb2.HealthCheckRequest(service=process.service)
        while True:
            used, began = usage(process.pid), time.monotonic()
            try:
                if process.live_url:
                    well = (await http.get(process.live_url)).status_code == httpx.codes.OK
                else:
                    reply = await stub.Check(question, timeout=_PATIENCE_SECONDS)
                    well = reply.status == health_pb2.HealthCheckResponse.SERVING
            except (httpx.HTTPError, grpc.RpcError):
                well = False
            took = time.monotonic() - began
            samples.append(Sample(began, took if well else float("nan"), used))
            await asyncio.sleep(max(0.0, INTERVAL_SECONDS - took))


@dataclass(frozen=True, slots=True)
class Counts:
    """A process's metrics at one moment."""

    values: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def read(cls, exposition: str) -> Counts:
        """Those in a Prometheus text."""
        return cls(
            {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(exposition)
                for sample in family.samples
            }
        )

    def total(self, name: str, **labels: str) -> float:
        """The sum over all series of a metric that have these labels."""
        wanted = set(labels.items())
        return sum(value for (metric, found), value in self.values.items() if metric == name and wanted <= found)

    def since(self, earlier: Counts) -> Counts:
        """What was counted after ``earlier``."""
        return Counts({key: value - earlier.values.get(key, 0.0) for key, value in self.values.items()})

    def by(self, name: str, label: str) -> dict[str, float]:
        """A metric's sums by the values of one label, those above 0."""
        sums: dict[str, float] = {}
        for (metric, found), value in self.values.items():
            if metric == name and value:
                key = dict(found).get(label, "")
                sums[key] = sums.get(key, 0.0) + value
        return sums


async def scrape(url: str) -> Counts:
    """The metrics at a Prometheus endpoint."""
    async with httpx.AsyncClient(timeout=_PATIENCE_SECONDS, trust_env=False) as http:
        return Counts.read((await http.get(url)).raise_for_status().text)
