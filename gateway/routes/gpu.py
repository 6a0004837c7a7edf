"""Our ``GET /v1/gpu`` and its stream: the state of the GPUs behind the mesh."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.answers import json_answer
from gateway.api import Api, Operation
from gateway.exchange import Exchange
from gateway.peers import GpuReader
from gateway.settings import GatewaySettings
from gateway.streaming import EVENTS, live, sse
from mesh.errors import InvalidRequest

if TYPE_CHECKING:
    from gateway.keys.guard import Guard

_MIN_INTERVAL_MS = 100
_MAX_INTERVAL_MS = 3_600_000

_EXAMPLE = {
    "read_at_unix_ms": 1763600000000,
    "devices": [],
    "driver_version": "",
    "cuda_version": "",
    "unavailable_reason": "NVML is not there: no NVIDIA driver is installed on this machine.",
}
NOW = Operation(
    method="GET",
    path="/v1/gpu",
    tag="Mesh",
    summary="The GPUs now",
    description="With no GPU: an empty list and the reason.",
    answer=_EXAMPLE,
)
STREAM = Operation(
    method="GET",
    path="/v1/gpu/stream",
    tag="Mesh",
    summary="The GPUs, again and again",
    description="Server-sent events, one per interval.",
    answer_type="text/event-stream",
    extra={
        "parameters": [
            {
                "name": "interval_ms",
                "in": "query",
                "required": False,
                "schema": {
                    "type": "integer",
                    "default": 1000,
                    "minimum": _MIN_INTERVAL_MS,
                    "maximum": _MAX_INTERVAL_MS,
                },
            }
        ]
    },
)


@dataclass(frozen=True, slots=True)
class GpuRoutes:
    """Tells the GPUs' state. ``guard`` ends the streams of keys that are revoked."""

    gpu: GpuReader
    settings: GatewaySettings
    guard: Guard | None = None

    def mount(self, api: Api) -> None:
        """Serve them."""
        api.mount(NOW, self.now, hop=self.gpu.hop)
        api.mount(STREAM, self.stream, hop=self.gpu.hop)

    async def now(self, request: Request) -> Response:
        """The state now."""
        deadline = Exchange.of(request).deadline(self.settings.timeouts.gpu_seconds)
        return json_answer(asdict(await self.gpu.get_gpu_status(deadline=deadline)))

    async def stream(self, request: Request) -> Response:
        """The state, every interval, until the client leaves or its key is good no more."""
        interval = _interval_ms(request.query_params.get("interval_ms", "1000"))
        exchange, frames = Exchange.of(request), self._frames(interval / 1000)
        if self.guard is not None:
            frames = self.guard.while_good(frames, exchange)
        return await live(frames, EVENTS, exchange=exchange, settings=self.settings.streams)

    async def _frames(self, interval_seconds: float) -> AsyncGenerator[bytes, None]:
        source: Any = self.gpu.watch_gpu_status(interval_seconds=interval_seconds)
        async with aclosing(source) as states:
            async for state in states:
                yield sse(asdict(state))


def _interval_ms(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 9 and _MIN_INTERVAL_MS <= int(text) <= _MAX_INTERVAL_MS:
        return int(text)
    raise InvalidRequest(
        f"interval_ms must be a whole number from {_MIN_INTERVAL_MS} to {_MAX_INTERVAL_MS}.", param="interval_ms"
    )
