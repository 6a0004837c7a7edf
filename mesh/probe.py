"""The health probe of a hop: one ``Health.Watch`` per endpoint, begun again for ever."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.channel import CLIENT_OPTIONS, core_target
from mesh.errors import MeshError
from mesh.telemetry import ENDPOINT_SERVING, fields, get_logger
from mesh.transport import Transport, relay
from mesh.wire import from_rpc_error

log = get_logger(__name__)

SERVING = "SERVING"
NOT_SERVING = "NOT_SERVING"
UNREACHABLE = "UNREACHABLE"
UNKNOWN = "UNKNOWN"

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 0.5
REASON_TIMEOUT_SECONDS = 1.0
REASON_INTERVAL_SECONDS = 1.0


@dataclass(slots=True)
class EndpointHealth:
    """What the probe knows of one endpoint."""

    endpoint: str
    health: str = UNKNOWN
    since: float = 0.0
    reason: str = ""
    reason_code: str = ""
    heard_at: float | None = None


class HealthProbe:
    """Watches every endpoint of a hop, on connections of its own, and tells who listens when one begins to serve.

    A connection of its own because the hop's channel leaves out what is not SERVING, and because the probe must see a
    worker come back while the hop itself is silent.
    """

    def __init__(
        self,
        hop: str,
        service: str,
        endpoints: tuple[str, ...],
        *,
        transport: Transport,
        on_serving: Callable[[], None],
    ) -> None:
        self.hop = hop
        self.service = service
        self.endpoints = {endpoint: EndpointHealth(endpoint, since=time.monotonic()) for endpoint in endpoints}
        self._transport = transport
        self._on_serving = on_serving
        self._channels: list[Any] = []
        self._ends: list[Callable[[], Awaitable[None]]] = []
        self._followers: list[Callable[[], Awaitable[None]]] = []
        self._stopping = False
        self._rng = random.Random()  # noqa: S311 - spreads reconnects over time; nothing secret

    def start(self) -> None:
        """Begin to watch."""
        for endpoint in self.endpoints:
            channel = self._transport.open(core_target(endpoint), CLIENT_OPTIONS)
            self._channels.append(channel)
            watch = partial(self._watch, endpoint, channel)
            self._ends.append(self._transport.spawn(watch, f"probe {endpoint}"))
            follow = partial(self._follow_reason, endpoint, channel)
            self._followers.append(self._transport.spawn(follow, f"probe reason {endpoint}"))

    async def stop(self) -> None:
        """End every watch. What asks for reasons ends before the channels on which it asks."""
        self._stopping = True
        for end in self._followers:
            await end()
        for channel in self._channels:
            await self._transport.close(channel)
        for end in self._ends:
            await end()

    async def _watch(self, endpoint: str, channel: Any) -> None:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=self.service)
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                replies = self._transport.stream(stub.Watch, request, timeout=None, metadata=())
                async for reply in relay(replies):
                    pause = FIRST_PAUSE_SECONDS
                    name = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
                    await self._heard(endpoint, channel, SERVING if name == SERVING else NOT_SERVING)
            except grpc.RpcError as error:
                if self._stopping:
                    return
                self._lost(endpoint, error)
            await self._transport.sleep(pause * self._rng.uniform(0.8, 1.2))
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def _heard(self, endpoint: str, channel: Any, health: str) -> None:
        state = self.endpoints[endpoint]
        state.heard_at = time.monotonic()
        if health == SERVING:
            self._change(state, health, "", "")
            self._on_serving()
        else:
            failure = await self._ask_why(channel)
            text, code = (failure.message, failure.reason) if failure else ("The worker says NOT_SERVING.", "")
            self._change(state, health, text, code)

    async def _follow_reason(self, endpoint: str, channel: Any) -> None:
        """Keep the reason current: Watch says NOT_SERVING once, and from loading to unusable it stays NOT_SERVING."""
        state = self.endpoints[endpoint]
        while True:
            await self._transport.sleep(REASON_INTERVAL_SECONDS)
            if state.health != NOT_SERVING:
                continue
            failure = await self._ask_why(channel)
            if failure and state.health == NOT_SERVING:
                state.reason, state.reason_code = failure.message, failure.reason

    async def _ask_why(self, channel: Any) -> MeshError | None:
        """The reason of a capability that does not serve: health carries none, but a refused Info does."""
        info = channel.unary_unary(f"/{self.service}/Info")
        try:
            await self._transport.unary(info, b"", timeout=REASON_TIMEOUT_SECONDS, metadata=())
        except grpc.RpcError as error:
            return from_rpc_error(error, hop=self.hop, caller_time_is_up=False)
        return None

    def _lost(self, endpoint: str, error: grpc.RpcError) -> None:
        # The core's text names the address and the cause (refused, timed out, bad certificate): an operator needs it,
        # and it goes to the log and the status page, never to a client.
        self._change(self.endpoints[endpoint], UNREACHABLE, str(error.details() or error.code()), error.code().name)

    def _change(self, state: EndpointHealth, health: str, reason: str, code: str) -> None:
        if state.health != health:
            level = log.info if health == SERVING else log.warning
            level("endpoint changed", extra=fields(endpoint=state.endpoint, hop=self.hop, health=health, reason=reason))
            state.since = time.monotonic()
            state.health = health
        state.reason, state.reason_code = reason, code
        ENDPOINT_SERVING.labels(self.hop, state.endpoint).set(health == SERVING)
