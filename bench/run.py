"""One run: its parts one after the other, each of which may fail without the others."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bench import (
    cached,
    crossencoder,
    curve,
    embedding,
    engines,
    footprint,
    gateway,
    llm,
    machine,
    memory,
    rerank,
    secured,
    single,
)
from bench.aside import BaselineFailed
from bench.chart import Curve
from bench.inprocess import InProcess
from bench.load import RequestFailed
from bench.options import Options
from bench.peers.catalog import PEERS, Peer
from bench.peers.install import install, is_installed
from bench.peers.measure import measure as measure_peer
from bench.processes import DidNotStart
from bench.report import Report, Row
from bench.subject import CannotMeasure, Comparison, Subject
from inference.card import ModelKind
from inference.models import ModelRequest, resolve
from mesh.errors import MeshError
from ops.local.layout import Layout

NEED_A_MESH = frozenset({"embedding", "single", "cached", "rerank", "curve", "peers"})
_BESIDE_THE_MODEL = frozenset({"embedding", "single", "engines", "cached", "rerank", "curve", "peers"})
_HOW_TO_INSTALL = "it is not installed; ./scripts/bench.sh --install-peers does that, from PyPI"
_NEAR_LIMIT_CORES = 0.8
_COST = "generator_us_per_request"
_QUICK = "A quick run: rounds this short say whether it works, not how fast it is."


class Run:
    """Measures what the options ask for.

    Args:
        options: what, how long and against which mesh.
        layout: where environments and models lie.
    """

    def __init__(self, options: Options, layout: Layout) -> None:
        self._options = options
        self._layout = layout
        self._began = time.monotonic()
        self._peers_dir = options.peers_dir or layout.home / "peers"
        self._rows: list[Row] = []
        self._curves: list[Curve] = []
        self._drawings: list[str] = []
        self._skipped: dict[str, str] = {}
        self._busy: list[float] = []

    async def measure(self, subject: Subject | None) -> Report:
        """All parts. ``subject`` is the mesh under test; None where no part needs one."""
        options, layout = self._options, self._layout
        started = datetime.now(UTC).isoformat(timespec="seconds")
        facts = machine.facts(layout.python("gateway"))
        model, why_none = find_model(options.model)
        if "gateway" in options.parts:
            await self._gateway(model)
        if "secured" in options.parts:
            await self._part("secured", lambda: secured.measure(options, layout.python("gateway"), self._tell))
        await self._beside_the_model(subject, model, why_none)
        if "cross-encoder" in options.parts:
            await self._part("cross-encoder", partial(self._cross_encoder, model, why_none))
        if "memory" in options.parts:
            await self._part("memory", self._memory)
        if "llm" in options.parts:
            await self._part("llm", lambda: llm.measure(options, layout, self._tell))
        settings: dict[str, Any] = {"rounds": options.rounds, "seconds": options.seconds, "quick": options.quick}
        if subject is not None:
            settings["serves"] = {name: hop.model for name, hop in subject.hops.items()}
        facts["busy_cores_between_parts"] = [round(busy, 2) for busy in self._busy]
        notes = [
            machine.busy_warning(self._busy),
            _QUICK if options.quick else "",
            why_none,
            *generator_notes(self._rows),
        ]
        return Report(
            started=started, machine=facts, settings=settings, rows=tuple(self._rows), skipped=self._skipped,
            notes=tuple(filter(None, notes)), curves=tuple(self._curves), drawings=tuple(self._drawings),
        )  # fmt: skip

    async def _gateway(self, model: Path | None) -> None:
        options, python = self._options, self._layout.python("gateway")
        await self._part("gateway tax", lambda: gateway.measure(options, python, self._tell))
        await self._part("gateway footprint", lambda: footprint.measure(options, python, model, self._tell))

    async def _beside_the_model(self, subject: Subject | None, model: Path | None, why_none: str) -> None:
        """The parts whose baseline is the model in process, while that process lives."""
        wanted = [part for part in self._options.parts if part in _BESIDE_THE_MODEL]
        if not wanted:
            return
        if model is None:
            self._skipped.update(dict.fromkeys(wanted, why_none))
            return
        self._tell(f"loading {self._options.model} in process, as the baseline")
        try:
            async with InProcess(model) as baseline:
                for part in wanted:
                    await self._beside(part, subject, model, baseline)
        except BaselineFailed as error:
            self._skipped.update({name: str(error) for name in wanted if name not in self._skipped})

    async def _beside(self, part: str, subject: Subject | None, model: Path, baseline: InProcess) -> None:
        layout = self._layout
        if part == "engines":
            for name in engines.names():
                measure = partial(engines.measure, name, self._options, layout, baseline=baseline, tell=self._tell)
                await self._part(f"engine {name}", measure)
        if subject is None:
            return
        comparison = Comparison(self._options, subject, baseline, self._tell)
        if part == "peers":
            await self._peers(comparison, model)
        measured: dict[str, Callable[[], Awaitable[Sequence[Row]]]] = {
            "embedding": lambda: embedding.measure(comparison),
            "single": lambda: single.measure(comparison, model, layout.models),
            "cached": lambda: cached.measure(comparison, layout.python("gateway")),
            "rerank": lambda: rerank.measure(comparison),
            "curve": lambda: self._curve(comparison),
        }
        if part in measured:
            await self._part(part, measured[part])

    async def _peers(self, comparison: Comparison, model: Path) -> None:
        why_not: dict[str, str] = {}
        if self._options.install_peers:
            self._tell(f"installing the peers into {self._peers_dir}")
            why_not = await asyncio.to_thread(install, self._layout, self._peers_dir)

        async def measure(peer: Peer) -> list[Row]:
            if not is_installed(peer, self._peers_dir):
                raise CannotMeasure(why_not.get(peer.environment_name, _HOW_TO_INSTALL))
            rows, curve_ = await measure_peer(peer, self._peers_dir, model, comparison)
            self._curves.append(curve_)
            return rows

        for peer in PEERS:
            await self._part(peer.name, partial(measure, peer))

    async def _curve(self, comparison: Comparison) -> Sequence[Row]:
        self._curves.extend(await curve.measure(comparison))
        return ()

    async def _cross_encoder(self, model: Path | None, why_none: str) -> Sequence[Row]:
        if model is None:
            raise CannotMeasure(why_none)
        return await crossencoder.measure(self._options, self._layout, model, tell=self._tell)

    async def _memory(self) -> Sequence[Row]:
        rows, drawing = await memory.measure(self._options, self._layout, tell=self._tell)
        self._drawings.append(drawing)
        return rows

    async def _part(self, name: str, measure: Callable[[], Awaitable[Sequence[Row]]]) -> None:
        busy = await asyncio.to_thread(machine.busy_cores)
        if busy is not None:
            self._busy.append(busy)
            if warning := machine.busy_warning([busy]):
                self._tell(warning)
        try:
            self._rows.extend(await measure())
        except (CannotMeasure, DidNotStart, RequestFailed, BaselineFailed, MeshError, OSError) as error:
            self._skipped[name] = str(error)
            self._tell(f"{name} was not measured: {error}")

    def _tell(self, line: str) -> None:
        """Progress goes to the error stream, so that the output is the result alone."""
        print(f"[{time.monotonic() - self._began:4.0f} s] {line}", file=sys.stderr, flush=True)


def find_model(name: str) -> tuple[Path | None, str]:
    """The directory of the in-process model, found as the workers find it; else None and the reason."""
    try:
        return resolve(ModelRequest(name=name, kind=ModelKind.EMBEDDING, setting="--model")).path, ""
    except MeshError as error:
        return None, f"There is no in-process baseline: {error.message}"


def generator_notes(rows: Sequence[Row]) -> list[str]:
    """What the load generator took for itself, and where that may have held the mesh back."""
    busy = [(float(row.details["generator_cores"]), row) for row in rows if "generator_cores" in row.details]
    if not busy:
        return []
    most, where = max(busy, key=lambda each: each[0])
    notes = [f"The load generator kept at most {most:.2f} of a core busy ({where.part}: {where.what})."]
    costs = [float(row.details[_COST]) for row in rows if _COST in row.details]
    if costs:
        notes.append(
            f"One small request cost it up to {max(costs):.0f} µs of CPU, for the gateway and the bare one alike."
        )
    if most > _NEAR_LIMIT_CORES:
        notes.append("That is near its limit: the mesh may be faster there than the figure says.")
    return notes
