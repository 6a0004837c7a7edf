"""Which names reach which model: what the workers serve, and the aliases from the settings."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from gateway.peers import Peers
from mesh.deadline import Deadline
from mesh.errors import MeshError, NotFound


class Capability(Enum):
    """What a model is for, as ``/v1/models`` writes it."""

    EMBEDDING = "embedding"
    RERANK = "rerank"
    CHUNKING = "chunking"
    CHAT = "chat"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model, or a chunker, that a worker serves now."""

    name: str
    aliases: tuple[str, ...]
    capability: Capability


class Catalogue:
    """Finds models by name.

    Args:
        peers: who serves them.
        aliases: further names, from the settings.
        info_seconds: how long a worker may take to say what it serves; one that takes longer is left out.
    """

    def __init__(self, peers: Peers, *, aliases: Mapping[str, str], info_seconds: float) -> None:
        self._aliases = dict(aliases)
        self._info_seconds = info_seconds
        ask = _Ask(peers)
        self._ask: Mapping[Capability, Callable[[Deadline], Awaitable[tuple[ServedModel, ...]]]] = {
            Capability.EMBEDDING: ask.embedding,
            Capability.RERANK: ask.rerank,
            Capability.CHUNKING: ask.chunking,
            Capability.CHAT: ask.chat,
        }

    def resolve(self, name: str) -> str:
        """The name to ask the worker for: the alias's target, or the name itself."""
        return self._aliases.get(name, name)

    async def served(self) -> tuple[ServedModel, ...]:
        """Everything that is served now, with all names. A worker that does not answer is left out."""
        found = await asyncio.gather(*(self._served(capability) for capability in self._ask))
        return tuple(model for models in found for model in models)

    async def _served(self, capability: Capability) -> tuple[ServedModel, ...]:
        try:
            models = await self._ask[capability](Deadline.after(self._info_seconds))
        except MeshError:
            return ()
        return tuple(
            ServedModel(model.name, self._names_of(model, is_default=position == 0), capability)
            for position, model in enumerate(models)
        )

    def _names_of(self, model: ServedModel, *, is_default: bool) -> tuple[str, ...]:
        # An alias may lead to "": whatever the worker's default is.
        mine = {model.name, *model.aliases, *([""] if is_default else [])}
        further = (alias for alias, target in self._aliases.items() if target in mine)
        return tuple(dict.fromkeys((*model.aliases, *further)))

    async def unknown(self, name: str, capability: Capability) -> NotFound:
        """The error for a name that no worker knows: it says which names there are."""
        served = await self._served(capability)
        names = list(dict.fromkeys(known for model in served for known in (model.name, *model.aliases)))
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        there = f" Served for {capability.value}: {', '.join(names)}." if names else ""
        return NotFound(
            f"The model {name[:128]!r} is not served here.{hint}{there}", param="model", reason="MODEL_NOT_FOUND"
        )


class _Ask:
    """What each worker's own answer looks like as served models."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def embedding(self, deadline: Deadline) -> tuple[ServedModel, ...]:
        info = await self._peers.embedder.info(deadline=deadline)
        return tuple(ServedModel(model.name, model.aliases, Capability.EMBEDDING) for model in info.models)

    async def rerank(self, deadline: Deadline) -> tuple[ServedModel, ...]:
        info = await self._peers.reranker.info(deadline=deadline)
        return tuple(ServedModel(model.name, model.aliases, Capability.RERANK) for model in info.models)

    async def chunking(self, deadline: Deadline) -> tuple[ServedModel, ...]:
        info = await self._peers.chunker.info(deadline=deadline)
        return tuple(ServedModel(chunker.name, chunker.aliases, Capability.CHUNKING) for chunker in info.chunkers)

    async def chat(self, deadline: Deadline) -> tuple[ServedModel, ...]:
        """Of all writers that answer, each by the names it has and the one it has in the settings."""
        given = {id(writer): name for name, writer in self._peers.writers.items()}
        writers = self._peers.all_writers()
        told = await asyncio.gather(*(writer.info(deadline=deadline) for writer in writers), return_exceptions=True)
        if len(told) == 1 and isinstance(told[0], MeshError):
            raise told[0]
        models = []
        for writer, info in zip(writers, told, strict=True):
            if isinstance(info, MeshError):
                continue
            if isinstance(info, BaseException):
                raise info
            further = (given[id(writer)],) if id(writer) in given else ()
            models += [
                ServedModel(model.name, tuple(dict.fromkeys((*model.aliases, *further))), Capability.CHAT)
                for model in info.models
            ]
        return tuple(models)
