"""What ``/status`` says: every hop, what serves there, and what to do where nothing does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from gateway.lifecycle import Lifecycle
from gateway.peers import Peer, Peers, Writer
from mesh.deadline import Deadline
from mesh.endpoint import UNKNOWN, EndpointHealth
from mesh.errors import MeshError, Overloaded
from mesh.hop import HopStatus
from mesh.resilience import BreakerState
from mesh.version import VERSION

LOOK_SECONDS = 0.08
"""How long a look at the status waits for a worker that has been asked before."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What a worker last said of itself, and how long that took; or why it did not."""

    serves: dict[str, Any] = field(default_factory=dict)
    answered_ms: float | None = None
    failure: str = ""


class _Inquiry:
    """Asks a worker what it serves: once for all who look at the same time.

    A busy worker does not make the status slow: after the first time, who looks waits a moment and then reads what the
    worker last said, while the question stays open.
    """

    def __init__(self, ask: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[None] | None = None
        self._said: _Said | None = None

    async def said(self) -> _Said:
        """What is known now."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._run())
        # The first answer has a deadline of its own.
        await asyncio.wait({self._asking}, timeout=None if self._said is None else LOOK_SECONDS)
        return self._said or _Said()

    async def known(self) -> _Said:
        """What is known without asking; asks where nothing is."""
        return self._said or await self.said()

    async def _run(self) -> None:
        started = time.perf_counter()
        try:
            serves = await self._ask()
            self._said = _Said(serves, round((time.perf_counter() - started) * 1000, 2))
        except MeshError as error:
            # Who is busy serves what it served.
            known = self._said.serves if self._said is not None and isinstance(error, Overloaded) else {}
            self._said = _Said(known, failure=error.message)
        finally:
            self._asking = None


class StatusReport:
    """Gathers the status of all hops, within 100 ms also where workers are busy.

    Args:
        peers: whose hops are told about.
        lifecycle: the gateway's own state.
        info_seconds: how long a worker may take to say what it serves.
        targets: where each hop leads, as configured, by its name.
        hints: how to choose what else each hop's worker serves, by its name.
        certificate: tells the gateway's own certificate; None where the hops are plaintext.
    """

    def __init__(  # noqa: PLR0913 - made in one place, by the composition root, by names
        self,
        peers: Peers,
        lifecycle: Lifecycle,
        *,
        info_seconds: float,
        targets: Mapping[str, str],
        hints: Mapping[str, str],
        certificate: Callable[[], dict[str, Any]] | None = None,
        keys: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self._peers = peers
        self._lifecycle = lifecycle
        self._info_seconds = info_seconds
        self._targets = targets
        self._hints = hints
        self._certificate = certificate
        self._keys = keys
        self._devices = _Inquiry(self._read_gpus)
        self._asked: Sequence[tuple[Peer, _Inquiry]] = (
            (peers.embedder, _Inquiry(self._embedding)),
            (peers.reranker, _Inquiry(self._reranking)),
            (peers.chunker, _Inquiry(self._chunking)),
            (peers.gpu, _Inquiry(self._gpu)),
            *((writer, _Inquiry(partial(self._llm, writer))) for writer in peers.all_writers()),
        )

    async def document(self, *, asks: bool = True) -> dict[str, Any]:
        """The whole report. ``status`` is ``ok`` where every hop serves, else ``degraded``.

        Args:
            asks: whether workers are asked what they serve; otherwise only those that never said.
        """
        hops = await asyncio.gather(*(self._hop(peer, inquiry, asks=asks) for peer, inquiry in self._asked))
        return {
            "status": "ok" if all(hop["serving"] for hop in hops) else "degraded",
            "gateway": {
                "version": VERSION,
                "started_unix_seconds": self._lifecycle.started_unix_seconds,
                "uptime_seconds": round(self._lifecycle.uptime_seconds(), 1),
                "draining": self._lifecycle.draining,
                "certificate": self._certificate() if self._certificate else None,
            },
            "keys": self._keys() if self._keys else None,
            "hops": hops,
        }

    async def gpus(self, *, asks: bool = True) -> dict[str, Any]:
        """The GPUs' state as ``/v1/gpu`` says it, with ``failure`` in its place where it cannot be read."""
        if _known_to_be_away(self._peers.gpu.hop.status()):
            return {"failure": "The gpu hop does not serve."}
        said = await (self._devices.said() if asks else self._devices.known())
        return said.serves or {"failure": said.failure or "The worker has not answered yet."}

    async def _hop(self, peer: Peer, inquiry: _Inquiry, *, asks: bool) -> dict[str, Any]:
        if _known_to_be_away(peer.hop.status()):
            said = _Said()
        else:
            said = await (inquiry.said() if asks else inquiry.known())
        status = peer.hop.status()
        shown = _hop_document(status)
        shown["target"] = self._targets.get(status.name, "")
        shown["info_ms"] = said.answered_ms
        if not status.serving or said.failure:
            shown["reason"] = _reason(status, said.failure)
        shown["serves"] = said.serves
        shown["choose_another"] = self._hints.get(status.name.partition(":")[0], "")
        return shown

    def _deadline(self) -> Deadline:
        return Deadline.after(self._info_seconds)

    async def _embedding(self) -> dict[str, Any]:
        info = await self._peers.embedder.info(deadline=self._deadline())
        return {
            "models": [asdict(model) for model in info.models],
            "limits": asdict(info.limits),
            "version": info.version,
        }

    async def _reranking(self) -> dict[str, Any]:
        info = await self._peers.reranker.info(deadline=self._deadline())
        return {
            "models": [asdict(model) for model in info.models],
            "limits": asdict(info.limits),
            "version": info.version,
        }

    async def _chunking(self) -> dict[str, Any]:
        return asdict(await self._peers.chunker.info(deadline=self._deadline()))

    async def _gpu(self) -> dict[str, Any]:
        return asdict(await self._peers.gpu.info(deadline=self._deadline()))

    async def _read_gpus(self) -> dict[str, Any]:
        return asdict(await self._peers.gpu.get_gpu_status(deadline=self._deadline()))

    async def _llm(self, writer: Writer) -> dict[str, Any]:
        return asdict(await writer.info(deadline=self._deadline()))


def _known_to_be_away(status: HopStatus) -> bool:
    """Whether asking is in vain: a status page that is looked at often must not be what opens the breaker."""
    return not status.serving and all(endpoint.health != UNKNOWN for endpoint in status.endpoints)


def _hop_document(status: HopStatus) -> dict[str, Any]:
    now = time.monotonic()
    return {
        "name": status.name,
        "service": status.service,
        "serving": status.serving,
        "endpoints": [_endpoint_document(endpoint, now) for endpoint in status.endpoints],
        "breaker": {
            "state": status.breaker.state.value,
            "seconds_in_state": round(status.breaker.seconds_in_state, 1),
            "consecutive_failures": status.breaker.consecutive_failures,
            "times_opened": status.breaker.times_opened,
            "retry_after": status.breaker.retry_after,
            "cause": status.breaker.cause.value if status.breaker.cause else None,
            "reason": status.breaker.reason,
        },
        "in_flight": status.in_flight,
        "limit": status.limit,
        "calls": status.calls,
        "retries": status.retries,
        "p50_ms": _ms(status.p50_seconds),
        "p99_ms": _ms(status.p99_seconds),
    }


def _endpoint_document(endpoint: EndpointHealth, now: float) -> dict[str, Any]:
    return {
        "endpoint": endpoint.endpoint,
        "address": endpoint.address,
        "health": endpoint.health,
        "in_flight": endpoint.in_flight,
        "ejected": endpoint.ejected,
        "seconds_in_state": round(now - endpoint.since, 1),
        "last_probe_seconds_ago": None if endpoint.heard_at is None else round(now - endpoint.heard_at, 1),
        "reason": endpoint.reason,
        "reason_code": endpoint.reason_code,
    }


def _reason(status: HopStatus, failure: str) -> str:
    """Why it does not serve: what the worker said of itself before what it looks like from here."""
    said = next((endpoint.reason for endpoint in status.endpoints if endpoint.reason), "")
    opened = (
        f"The circuit breaker is open: {status.breaker.reason}." if status.breaker.state is BreakerState.OPEN else ""
    )
    return said or failure or opened or "The worker has not been heard of yet."


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
