"""Beside a hop's probes: finds out whether an endpoint that cannot be reached fails by its certificates."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from mesh.channel import Place
from mesh.endpoint import UNREACHABLE, Endpoint
from mesh.errors import Unavailable
from mesh.telemetry import fields, get_logger
from mesh.tls.problems import Finding
from mesh.transport import Transport

if TYPE_CHECKING:  # cryptography is not loaded for a hop without TLS
    from mesh.tls.client import ClientTls

log = get_logger(__name__)

FIRST_LOOK_SECONDS = 1.0
"""An endpoint that is away for less than this is restarting, most likely."""
LOOK_AGAIN_SECONDS = 15.0


class Lookout:
    """Looks at endpoints that cannot be reached: one at a time, each rarely.

    Args:
        hop: its name.
        transport: how to work beside.
        tls: of the hop; None for one in plaintext, whose peers may take TLS only.
    """

    def __init__(self, hop: str, transport: Transport, tls: ClientTls | None) -> None:
        self._hop = hop
        self._transport = transport
        self._tls = tls
        self._next: dict[str, float] = {}
        self._is_looking = False
        self._end: Callable[[], Awaitable[None]] | None = None

    def look(self, endpoints: Iterable[tuple[Endpoint, Place]]) -> None:
        """Begin to look at one that is due; return at once."""
        if self._is_looking:
            return
        now = time.monotonic()
        away = {each.address: (each, place) for each, place in endpoints if each.health == UNREACHABLE}
        self._next = {address: when for address, when in self._next.items() if address in away}
        for address, (endpoint, place) in away.items():
            due = max(self._next.get(address, 0.0), endpoint.since + FIRST_LOOK_SECONDS)
            if now >= due:
                self._next[address] = now + LOOK_AGAIN_SECONDS
                self._is_looking = True
                self._end = self._transport.spawn(partial(self._look_at, endpoint, place), f"look at {address}")
                return

    async def stop(self) -> None:
        """End what is under way."""
        end, self._end = self._end, None
        if end is not None:
            await end()

    async def _look_at(self, endpoint: Endpoint, place: Place) -> None:
        try:
            finding = await self._transport.aside(lambda: self._diagnose(endpoint, place), "look at certificates")
            self._tell(endpoint, finding)
        except Exception:
            log.exception("a look at an endpoint's certificates failed", extra=fields(hop=self._hop))
        finally:
            self._is_looking = False

    def _diagnose(self, endpoint: Endpoint, place: Place) -> Finding | None:
        from mesh.tls.diagnosis import Shown, diagnose  # ssl is loaded when something is wrong

        if self._tls is None:
            return diagnose(endpoint.address, None)
        shown = Shown(self._tls.identity.material, self._tls.server_name(place), time.time())
        return diagnose(endpoint.address, shown)

    def _tell(self, endpoint: Endpoint, finding: Finding | None) -> None:
        if finding is None:
            endpoint.diagnose(None)
            return
        from mesh.tls.metrics import ENDPOINT_PROBLEMS

        ENDPOINT_PROBLEMS.labels(self._hop, finding.problem.value).inc()
        if endpoint.diagnose(Unavailable(finding.message, reason=finding.problem.value, hop=self._hop)):
            values: Mapping[str, object] = {
                "hop": self._hop,
                "endpoint": endpoint.status().address,
                "problem": finding.problem.value,
                "reason": finding.message,
            }
            log.error("an endpoint's certificates are at fault", extra=fields(**values))
