"""For operators: health, status and metrics of the gateway itself."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from gateway.answers import json_answer
from gateway.api import Api, Operation
from gateway.lifecycle import Lifecycle
from gateway.status import StatusReport

LIVE = Operation(
    method="GET",
    path="/health/live",
    tag="Operations",
    summary="Whether the process turns",
    answer={"status": "live"},
    probed=True,
)
READY = Operation(
    method="GET",
    path="/health/ready",
    tag="Operations",
    summary="Whether the gateway takes requests",
    description="Does not depend on the workers: one dead worker must not take the gateway out of its load balancer.",
    answer={"status": "ready"},
    probed=True,
)
STATUS = Operation(
    method="GET",
    path="/status",
    tag="Operations",
    summary="Every hop: endpoints, health, breaker, latency, models",
    answer={
        "status": "ok",
        "gateway": {"version": "0.1.0", "started_unix_seconds": 1763600000, "uptime_seconds": 12.5, "draining": False},
        "hops": [
            {
                "name": "embedding",
                "serving": True,
                "endpoints": [{"endpoint": "127.0.0.1:50051", "health": "SERVING", "reason": ""}],
                "breaker": {"state": "closed", "seconds_in_state": 12.5},
                "in_flight": 0,
                "p50_ms": 4.2,
                "p99_ms": 9.7,
            }
        ],
    },
)
METRICS = Operation(
    method="GET",
    path="/metrics",
    tag="Operations",
    summary="Metrics for Prometheus",
    answer_type="text/plain",
)


@dataclass(frozen=True, slots=True)
class OperationsRoutes:
    """Tells how the gateway and its hops are."""

    lifecycle: Lifecycle
    report: StatusReport

    def mount(self, api: Api) -> None:
        """Serve them."""
        api.mount(LIVE, self.live)
        api.mount(READY, self.ready)
        api.mount(STATUS, self.status)
        api.mount(METRICS, self.metrics)

    async def live(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint's signature
        """That this is answered is the answer."""
        return json_answer({"status": "live"})

    async def ready(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint's signature
        """200 while requests are taken, 503 before and after."""
        if self.lifecycle.ready and not self.lifecycle.draining:
            return json_answer({"status": "ready"})
        state = "draining" if self.lifecycle.draining else "starting"
        answer = json_answer({"status": state}, {"retry-after": "1"})
        answer.status_code = 503
        return answer

    async def status(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint's signature
        """Always 200: the document says what serves."""
        return json_answer(await self.report.document(), {"cache-control": "no-store"})

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint's signature
        """All of this process's metrics."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return Response(generate_latest(), headers={"content-type": CONTENT_TYPE_LATEST})
