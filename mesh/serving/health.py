"""Readiness per capability: the one place that decides whether a call is let in, told to health checks and callers."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from grpc_health.v1 import health, health_pb2

from mesh.errors import MeshError, Unavailable
from mesh.telemetry import CAPABILITY_SERVING, fields, get_logger

log = get_logger(__name__)

OVERALL = ""
"""The health name that stands for the whole process."""


class Readiness:
    """The state of each capability, mirrored to grpc.health.v1: SERVING, or NOT_SERVING with a reason."""

    def __init__(self, services: Iterable[str]) -> None:
        starting = Unavailable(
            "This capability is still starting: its model is being loaded.", reason="STARTING", retry_after=2.0
        )
        self._reasons: dict[str, MeshError | None] = dict.fromkeys(services, starting)
        self._draining = False
        self._closed = False
        self.servicer = health.aio.HealthServicer()

    async def announce(self) -> None:
        """Tell health checks the present state; call once the server exists."""
        for service in self._reasons:
            await self._publish(service)

    async def set(self, service: str, reason: MeshError | None) -> None:
        """Make a capability serve (``None``) or not, with the reason that callers get. A repetition changes nothing."""
        before = self._reasons[service]
        self._reasons[service] = reason
        if _text(before) == _text(reason):
            return
        if reason is None:
            log.info("capability is serving", extra=fields(service=service))
        else:
            log.warning("capability is not serving", extra=fields(service=service, reason=reason.message))
        await self._publish(service)

    async def drain(self) -> None:
        """NOT_SERVING for all, for good: clients look elsewhere while admitted calls finish."""
        self._draining = True
        for service in self._reasons:
            await self._publish(service)

    def close(self) -> None:
        """Let no new call in any more, for good. Refused with its reason, it is tried elsewhere by the caller's hop."""
        self._closed = True

    def refusal(self, service: str) -> MeshError | None:
        """Why a new call to ``service`` is not let in; None when it is."""
        if self._closed:
            return Unavailable("The worker is draining; another one will answer.", reason="DRAINING", retry_after=1.0)
        # A copy, since it is raised: an exception that many calls raise carries all their tracebacks.
        return copy.copy(self._reasons.get(service))

    def serving(self, service: str) -> bool:
        """Whether a capability serves now."""
        return not self._draining and self._reasons[service] is None

    async def _publish(self, service: str) -> None:
        await self._set_status(service, self.serving(service))
        await self._set_status(OVERALL, all(self.serving(each) for each in self._reasons))
        CAPABILITY_SERVING.labels(service).set(self.serving(service))

    async def _set_status(self, name: str, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        await self.servicer.set(name, states.SERVING if serving else states.NOT_SERVING)


def _text(reason: MeshError | None) -> str | None:
    return None if reason is None else reason.message
