"""Which model serves now: without knowing that, no kept vector may be given."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass

from gateway.peers import Embedder
from mesh.clock import Clock, monotonic
from mesh.deadline import Deadline
from mesh.errors import MeshError

CONFIRMED_SECONDS = 5.0
"""How long the worker's word counts; from half of it on it is asked again beside the requests. A worker that goes or
comes is seen at once; this bounds what cannot be seen, such as another worker behind the same load balancer."""
PATIENCE_SECONDS = 0.25
"""How long a request waits for the worker's word, if it has twice the time; then it does without the cache."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model by its canonical name, and the fingerprint of what it computes."""

    name: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Heard:
    model: Served | None
    at: float


_NOTHING = _Heard(None, float("-inf"))


class ServedModels:
    """Knows the model behind each name, from the worker's Info and from its answers.

    Args:
        embedder: the worker's client.
        info_seconds: how long the worker may take to say what it serves.
        clock: source of time.
    """

    def __init__(self, embedder: Embedder, *, info_seconds: float, clock: Clock = monotonic) -> None:
        self._embedder = embedder
        self._info_seconds = info_seconds
        self._clock = clock
        self._servers: Hashable = None
        self._heard: dict[str, _Heard] = {}
        self._info_at = _NOTHING.at
        self._asking: asyncio.Task[None] | None = None

    async def now(self, name: str, deadline: Deadline) -> Served | None:
        """The model that serves under this name or alias; None where nobody says."""
        self._forget_if_others_serve()
        age = self._clock() - max(self._info_at, self._heard.get(name, _NOTHING).at)
        if age >= CONFIRMED_SECONDS / 2:
            asking = self._begin_to_ask()
            if age >= CONFIRMED_SECONDS:
                await asyncio.wait({asking}, timeout=min(deadline.remaining() / 2, PATIENCE_SECONDS))
        heard = self._heard.get(name, _NOTHING)
        return heard.model if self._clock() - heard.at < CONFIRMED_SECONDS else None

    def learn(self, name: str, model: Served, *, asked: Hashable) -> None:
        """Take it from an answer to a request for ``name``, unless others serve now than the ``asked``."""
        # Otherwise it is perhaps the late word of one that has gone.
        if asked == self._embedder.hop.servers():
            self._heard[name] = _Heard(model, self._clock())

    async def close(self) -> None:
        """Stop asking."""
        if (asking := self._asking) is not None:
            asking.cancel()
            await asyncio.wait({asking})

    def _forget_if_others_serve(self) -> None:
        servers = self._embedder.hop.servers()
        if servers != self._servers:
            self._servers = servers
            self._heard.clear()
            self._info_at = _NOTHING.at

    def _begin_to_ask(self) -> asyncio.Task[None]:
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return self._asking

    async def _ask(self) -> None:
        try:
            servers = self._embedder.hop.servers()
            info = await self._embedder.info(deadline=Deadline.after(self._info_seconds))
        except MeshError:
            return
        finally:
            self._asking = None
        if servers != self._embedder.hop.servers():
            return
        self._info_at = self._clock()
        for position, model in enumerate(info.models):
            # The first one is what a request without a name gets.
            for name in (model.name, *model.aliases, *([""] if position == 0 else [])):
                self.learn(name, Served(model.name, model.fingerprint), asked=servers)
