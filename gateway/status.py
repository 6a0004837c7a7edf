"""What ``/status`` says: every hop, what serves there, and what to do where nothing does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gateway.lifecycle import Lifecycle
from gateway.peers import Peer, Peers
from mesh.deadline import Deadline
from mesh.endpoint import UNKNOWN, EndpointHealth
from mesh.errors import MeshError
from mesh.hop import HopStatus
from mesh.version import VERSION


@dataclass(frozen=True, slots=True)
class StatusReport:
    """Gathers the status of all hops.

    Args:
        peers: whose hops are told about.
        lifecycle: the gateway's own state.
        info_seconds: how long a worker may take to say what it serves.
        targets: where each hop leads, as configured, by its name.
        hints: how to choose what else each hop's worker serves, by its name.
    """

    peers: Peers
    lifecycle: Lifecycle
    info_seconds: float
    targets: Mapping[str, str]
    hints: Mapping[str, str]

    async def document(self) -> dict[str, Any]:
        """The whole report. ``status`` is ``ok`` where every hop serves, else ``degraded``."""
        peers = self.peers
        hops = await asyncio.gather(
            self._hop(peers.embedder, self._embedding),
            self._hop(peers.reranker, self._reranking),
            self._hop(peers.chunker, self._chunking),
            self._hop(peers.gpu, self._gpu),
            self._hop(peers.writer, self._llm),
        )
        return {
            "status": "ok" if all(hop["serving"] for hop in hops) else "degraded",
            "gateway": {
                "version": VERSION,
                "started_unix_seconds": self.lifecycle.started_unix_seconds,
                "uptime_seconds": round(self.lifecycle.uptime_seconds(), 1),
                "draining": self.lifecycle.draining,
            },
            "hops": hops,
        }

    async def _hop(self, peer: Peer, ask: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        failure = ""
        serves: dict[str, Any] = {}
        answered_ms: float | None = None
        if not _known_to_be_away(peer.hop.status()):
            started = time.perf_counter()
            try:
                serves = await ask()
                answered_ms = round((time.perf_counter() - started) * 1000, 2)
            except MeshError as error:
                failure = error.message
        status = peer.hop.status()
        shown = _hop_document(status)
        shown["target"] = self.targets.get(status.name, "")
        shown["info_ms"] = answered_ms
        if not status.serving or failure:
            shown["reason"] = _reason(status, failure)
        shown["serves"] = serves
        shown["choose_another"] = self.hints.get(status.name, "")
        return shown

    def _deadline(self) -> Deadline:
        return Deadline.after(self.info_seconds)

    async def _embedding(self) -> dict[str, Any]:
        info = await self.peers.embedder.info(deadline=self._deadline())
        return {
            "models": [asdict(model) for model in info.models],
            "limits": asdict(info.limits),
            "version": info.version,
        }

    async def _reranking(self) -> dict[str, Any]:
        info = await self.peers.reranker.info(deadline=self._deadline())
        return {
            "models": [asdict(model) for model in info.models],
            "limits": asdict(info.limits),
            "version": info.version,
        }

    async def _chunking(self) -> dict[str, Any]:
        return asdict(await self.peers.chunker.info(deadline=self._deadline()))

    async def _gpu(self) -> dict[str, Any]:
        return asdict(await self.peers.gpu.info(deadline=self._deadline()))

    async def _llm(self) -> dict[str, Any]:
        return asdict(await self.peers.writer.info(deadline=self._deadline()))


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
            "reason": status.breaker.reason,
        },
        "in_flight": status.in_flight,
        "limit": status.limit,
        "calls": status.calls,
        "p50_ms": _ms(status.p50_seconds),
        "p99_ms": _ms(status.p99_seconds),
    }


def _endpoint_document(endpoint: EndpointHealth, now: float) -> dict[str, Any]:
    return {
        "endpoint": endpoint.endpoint,
        "health": endpoint.health,
        "seconds_in_state": round(now - endpoint.since, 1),
        "last_probe_seconds_ago": None if endpoint.heard_at is None else round(now - endpoint.heard_at, 1),
        "reason": endpoint.reason,
        "reason_code": endpoint.reason_code,
    }


def _reason(status: HopStatus, failure: str) -> str:
    """Why it does not serve: what the worker said of itself before what it looks like from here."""
    said = next((endpoint.reason for endpoint in status.endpoints if endpoint.reason), "")
    return said or failure or "The worker has not been heard of yet."


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
