"""``GET /status/stream``: the status as it changes, which the page at ``/`` draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from gateway.api import Api, Operation
from gateway.exchange import Exchange
from gateway.settings import StreamsSettings
from gateway.streaming import EVENTS, live
from gateway.watching import StatusFeed

if TYPE_CHECKING:
    from gateway.keys.guard import Guard

STALLED_VIEWER_SECONDS = 10.0
"""A viewer holds one of few places, so one that reads nothing is given up sooner than other clients are."""

STREAM = Operation(
    method="GET",
    path="/status/stream",
    tag="Operations",
    summary="The status, again and again",
    description=(
        "Server-sent events: one `past` with each hop's last minute, then a `status` each second. It is the document "
        "of `/status` and also what each hop did in that second, what was refused in the last five minutes, and the "
        "GPUs. The stream ends when the gateway drains."
    ),
    answer_type="text/event-stream",
)


@dataclass(frozen=True, slots=True)
class WatchingRoute:
    """Streams the status. ``guard`` ends the streams of keys that are revoked."""

    feed: StatusFeed
    streams: StreamsSettings
    guard: Guard | None = None

    def mount(self, api: Api) -> None:
        """Serve it."""
        api.mount(STREAM, self.stream)

    async def stream(self, request: Request) -> Response:
        """Events until the viewer leaves, its key is good no more, or the gateway drains."""
        stalled = min(STALLED_VIEWER_SECONDS, self.streams.stalled_client_seconds)
        settings = self.streams.model_copy(update={"stalled_client_seconds": stalled})
        exchange, frames = Exchange.of(request), self.feed.frames()
        if self.guard is not None:
            frames = self.guard.while_good(frames, exchange)
        return await live(frames, EVENTS, exchange=exchange, settings=settings)
