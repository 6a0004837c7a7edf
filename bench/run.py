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

from bench import embedding, footprint, gateway, llm, machine, rerank
from bench.inprocess import BaselineFailed, InProcess
from bench.load import RequestFailed
from bench.options import Options
from bench.processes import DidNotStart
from bench.report import Report, Row
from bench.subject import CannotMeasure, Comparison, Subject
from inference.card import ModelKind
from inference.models import ModelRequest, resolve
from mesh.errors import MeshError
from ops.local.layout import Layout

NEED_A_MESH = frozenset({"embedding", "rerank", "llm"})
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
        self._rows: list[Row] = []
        self._skipped: dict[str, str] = {}
        self._busy: list[float] = []

    async def measure(self, subject: Subject | None) -> Report:
        """All parts. ``subject`` is the mesh under test; None where no part needs one."""
        options, gateway_python = self._options, self._layout.python("gateway")
        started = datetime.now(UTC).isoformat(timespec="seconds")
        facts = machine.facts(gateway_python)
        model, why_none = find_model(options.model)
        if "gateway" in options.parts:
            await self._part("gateway tax", lambda: gateway.measure(options, gateway_python, self._tell))
            await self._part("gateway footprint", lambda: footprint.measure(options, gateway_python, model, self._tell))
        if subject is not None:
            await self._beside_the_model(subject, model, why_none)
            if "llm" in options.parts:
                demo_model = self._layout.models / "demo-llm"
                await self._part("llm", lambda: llm.measure(options, subject, demo_model, self._tell))
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
            notes=tuple(filter(None, notes)),
        )  # fmt: skip

    async def _beside_the_model(self, subject: Subject, model: Path | None, why_none: str) -> None:
        """The parts whose baseline is the model in process, while that process lives."""
        parts = {"embedding": embedding.measure, "rerank": rerank.measure}
        wanted = {name: measure for name, measure in parts.items() if name in self._options.parts}
        if not wanted:
            return
        if model is None:
            self._skipped.update(dict.fromkeys(wanted, why_none))
            return
        self._tell(f"loading {self._options.model} in process, as the baseline")
        try:
            async with InProcess(model) as baseline:
                comparison = Comparison(self._options, subject, baseline, self._tell)
                for name, measure in wanted.items():
                    await self._part(name, partial(measure, comparison))
        except BaselineFailed as error:
            self._skipped.update({name: str(error) for name in wanted if name not in self._skipped})

    async def _part(self, name: str, measure: Callable[[], Awaitable[Sequence[Row]]]) -> None:
        busy = await asyncio.to_thread(machine.busy_cores)
        if busy is not None:
            self._busy.append(busy)
            if warning := machine.busy_warning([busy]):
                self._tell(warning)
        try:
            self._rows.extend(await measure())
        except (CannotMeasure, DidNotStart, RequestFailed, MeshError, OSError) as error:
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
