"""The mesh under test, as its gateway describes it, and the same beside the model in process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.inprocess import InProcess
from bench.measure import Tell
from bench.options import Options
from ops.local.status import HopState, MeshState, fetch

START = "./scripts/start_torch_isolation.sh"


class CannotMeasure(Exception):
    """A part cannot be measured now; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A running mesh: its gateway's address and its hops by name."""

    url: str
    hops: Mapping[str, HopState]

    def serving(self, name: str) -> HopState:
        """A hop that serves.

        Raises:
            CannotMeasure: it does not.
        """
        hop = self.hops.get(name)
        if hop is None or not hop.serving:
            reason = f": {hop.reason}" if hop is not None and hop.reason else ""
            raise CannotMeasure(
                f"{name} does not serve{reason}. See ./scripts/check_torch_isolation_health.sh --gateway {self.url}"
            )
        return hop

    def target(self, name: str, wished: str) -> str:
        """Where the worker of a hop is reached by gRPC: as wished, else as the gateway reaches it."""
        return wished or ",".join(self.serving(name).endpoints)


def _fetch(url: str) -> MeshState:
    return fetch(url, timeout=10.0)


def find(url: str, ask: Callable[[str], MeshState] = _fetch) -> Subject:
    """Ask a gateway for its hops.

    Raises:
        CannotMeasure: nothing answers there.
    """
    state = ask(url)
    if not state.ready:
        raise CannotMeasure(f"{state.error}. Start the mesh with {START}, or name a running one: --gateway URL")
    return Subject(url, {hop.name: hop for hop in state.hops})


@dataclass(frozen=True, slots=True)
class Comparison:
    """What embedding and reranking are measured with: the mesh, the model in process, and where progress is told."""

    options: Options
    subject: Subject
    baseline: InProcess
    tell: Tell
