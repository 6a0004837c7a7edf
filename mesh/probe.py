"""The health probe of an endpoint: one ``Health.Watch``, begun again for ever, on the connection that calls use.

On the same connection, so that what the probe sees is what calls meet: when it says SERVING, a connection is there, and
when a frozen peer's connection is given up, the endpoint is known to be gone in the same moment.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.endpoint import NOT_SERVING, SERVING, UNREACHABLE, Endpoint
from mesh.errors import Internal, MeshError, Unavailable
from mesh.telemetry import fields, get_logger
from mesh.transport import Transport
from mesh.wire import CONNECTION_LOST, from_rpc_error

log = get_logger(__name__)

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 0.25
"""Between two tries to begin a watch. A try on a connection that is down costs microseconds and no packet."""
UNWATCHED_PAUSE_SECONDS = 5.0
"""The same, where the peer answers and has no health to watch."""
WATCH_SECONDS = 240.0
"""A watch is begun again this often: no call is without a deadline, and none stays long on a connection that calls have
left because it grew old."""
REASON_TIMEOUT_SECONDS = 1.0
ANSWER_TIMEOUT_SECONDS = 2.0


class HealthProbe:
    """Follows the health of a hop's endpoints.

    Args:
        hop: its name, for errors.
        service: full gRPC name, which is also the name of its health.
        transport: how to wait.
        on_serving: called when an endpoint begins to serve.
    """

    def __init__(self, hop: str, service: str, *, transport: Transport, on_serving: Callable[[], None]) -> None:
        self._hop = hop
        self._service = service
        self._transport = transport
        self._on_serving = on_serving
        self._rng = random.Random()  # noqa: S311 - spreads reconnects over time; nothing secret

    async def watch(self, endpoint: Endpoint) -> None:
        """Tell ``endpoint`` its health until it is gone."""
        stub: Any = health_pb2_grpc.HealthStub(endpoint.channel)
        request = health_pb2.HealthCheckRequest(service=self._service)
        pause = FIRST_PAUSE_SECONDS
        while not endpoint.is_gone():
            try:
                replies = self._transport.stream(stub.Watch, request, timeout=WATCH_SECONDS, metadata=())
                async with aclosing(replies) as opened:
                    async for reply in opened:
                        pause = FIRST_PAUSE_SECONDS
                        await self._heard(endpoint, reply.status)
            except grpc.RpcError as error:
                if self._ended(endpoint, error):
                    pause = UNWATCHED_PAUSE_SECONDS
            except Exception:
                # Such as a closed channel, or no thread to be had. For ever means for ever.
                if not endpoint.is_gone():
                    log.exception("a health watch failed; it begins again", extra=fields(hop=self._hop))
            if endpoint.is_gone():
                return
            await self._transport.sleep(pause * self._rng.uniform(0.8, 1.2))
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def refresh_reason(self, endpoint: Endpoint) -> None:
        """Ask once more why: Watch says NOT_SERVING once, and from loading to unusable it stays NOT_SERVING."""
        failure = await self._ask_why(endpoint)
        if failure is not None:
            endpoint.explain(failure)

    async def answers(self, channel: Any, address: str) -> bool:
        """Whether a peer answers on a new channel to ``address``, whatever it says."""
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=self._service)
        try:
            await self._transport.unary(stub.Check, request, timeout=ANSWER_TIMEOUT_SECONDS, metadata=())
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return True
            values = fields(hop=self._hop, endpoint=address, reason=error.details())
            log.warning("no connection with the new certificate; the old connection goes on", extra=values)
            return False
        return True

    async def _heard(self, endpoint: Endpoint, status: int) -> None:
        if status == health_pb2.HealthCheckResponse.SERVING:
            if endpoint.heard(SERVING):
                self._on_serving()
            return
        # First the fact, which keeps calls away, then the question why.
        endpoint.heard(NOT_SERVING, Unavailable("The worker says NOT_SERVING.", reason="NOT_SERVING", retry_after=1.0))
        await self.refresh_reason(endpoint)

    def _ended(self, endpoint: Endpoint, error: grpc.RpcError) -> bool:
        """A watch ended. Returns whether the peer has no health to watch."""
        code = error.code()
        if endpoint.is_gone() or code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return False  # the watch's own time; the next one begins at once
        if code is grpc.StatusCode.UNIMPLEMENTED:
            # A server without grpc.health.v1 answers, which is all that can be known of it.
            if endpoint.heard(SERVING):
                self._on_serving()
            return True
        # The core's text names the address and the cause (refused, timed out, bad certificate): an operator needs it,
        # and it goes to the log and the status page, never to a client.
        failure = Unavailable("The worker cannot be reached.", reason=code.name)
        endpoint.heard(UNREACHABLE, failure, detail=str(error.details() or code))
        return False

    async def _ask_why(self, endpoint: Endpoint) -> MeshError | None:
        """The reason of a capability that does not serve: health carries none, but a refused Info does."""
        # Without serializers: no client's stub is known here, and an empty message is the same bytes in all of them.
        info = endpoint.channel.unary_unary(f"/{self._service}/Info")
        try:
            await self._transport.unary(info, b"", timeout=REASON_TIMEOUT_SECONDS, metadata=())
        except grpc.RpcError as error:
            reason = from_rpc_error(error, hop=self._hop, caller_time_is_up=False)
            return reason if _is_a_reason(reason) else None
        return None


def _is_a_reason(error: MeshError) -> bool:
    """Whether a refused Info tells why the capability does not serve, in the worker's own words."""
    if isinstance(error, Unavailable):
        return error.reason != CONNECTION_LOST
    return isinstance(error, Internal) and error.reason == "INTERNAL"
