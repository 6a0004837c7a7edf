"""One capability of a worker: the unit that health, readiness and the watchdog speak about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc.aio

from mesh.errors import MeshError


async def _nothing() -> None:
    """The stop of a capability that has nothing to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """What a worker offers under one gRPC service name.

    Attributes:
        service: full gRPC name, for example ``embedding.v1.EmbeddingService``; also the name of its health.
        register: adds the servicer to a server.
        start: loads the model and runs one real inference. It runs after the port is open, so that health answers
            NOT_SERVING meanwhile. A MeshError keeps the capability NOT_SERVING with that message as the reason; the
            other capabilities serve.
        canary: one real inference, run while the capability is idle, and also while it is busy when ``failures`` says
            so: it must not have to wait behind a full queue. It raises when the engine cannot do it.
        failures: how many batches the engine failed since it last computed one; 0 when all is well. More than 0 has
            the canary run at once.
        progress: seconds for which admitted work has waited for the engine without any progress; 0.0 when idle.
        occupied: whether the engine computes something now that the canary has to wait for; that time is not the
            canary's, and ``progress`` bounds it.
        unhealthy: None while all is well, otherwise the reason to be NOT_SERVING for now (an engine that restarts).
            It is asked about twice a second and must not block.
        stop: ends what ``start`` began, after the last call is done.
    """

    service: str
    register: Callable[[grpc.aio.Server], None]
    start: Callable[[], Awaitable[None]]
    canary: Callable[[], Awaitable[None]] | None = None
    failures: Callable[[], int] | None = None
    progress: Callable[[], float] | None = None
    occupied: Callable[[], bool] | None = None
    unhealthy: Callable[[], MeshError | None] | None = None
    stop: Callable[[], Awaitable[None]] = _nothing
