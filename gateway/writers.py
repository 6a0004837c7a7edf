"""Which language model's worker a request goes to, where several have one each."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from gateway.peers import Peers, Writer
from mesh.clients.llm import LLMInfo
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import MeshError, NotFound, Unavailable
from mesh.hop import HopStatus


@dataclass(frozen=True, slots=True)
class AnyHop:
    """The hops of all writers, for whoever cannot know yet which of them a request needs."""

    writers: tuple[Writer, ...]

    def status(self) -> HopStatus:
        """The first hop's: it stands for the capability."""
        return self.writers[0].hop.status()

    def times_since(self, mark: int) -> tuple[int, Sequence[float]]:
        """The first hop's."""
        return self.writers[0].hop.times_since(mark)

    def servers(self) -> Hashable:
        """Who serves now, on any of the hops."""
        return tuple(writer.hop.servers() for writer in self.writers)

    def require_room(self, priority: Priority = Priority.INTERACTIVE) -> None:
        """Raise what the last hop raises, where a call would be refused on every one of them."""
        refusal: MeshError | None = None
        for writer in self.writers:
            try:
                writer.hop.require_room(priority)
            except MeshError as error:
                refusal = error
            else:
                return
        if refusal is not None:
            raise refusal


class Writers:
    """Finds a model's writer by the name that a caller uses.

    The names from the settings are known beforehand. A worker may go by further ones; they are asked for when a name is
    met that nobody knows, and remembered.
    """

    def __init__(self, peers: Peers, *, info_seconds: float) -> None:
        self._default = peers.writer
        self._all = peers.all_writers()
        self._named: Mapping[str, Writer] = peers.writers
        self._info_seconds = info_seconds
        self._learnt: dict[str, int] = {}
        self._round: asyncio.Task[bool] | None = None

    @property
    def hop(self) -> AnyHop:
        """What a request needs room on before its body is read."""
        return AnyHop(self._all)

    async def find(self, name: str) -> tuple[Writer, str]:
        """The writer to ask, and the name to ask it for.

        Raises:
            NotFound: several workers are there, and none of them serves it.
            Unavailable: none that answers serves it, and one does not answer.
        """
        if name in self._named:
            return self._named[name], ""  # the name is ours; the worker's own may be another
        if not name or not self._named:
            return self._default, name
        if name not in self._learnt:
            all_answered = await self._learn()
            if name not in self._learnt:
                raise _unknown(all_answered=all_answered)
        return self._all[self._learnt[name]], name

    def forget(self, name: str) -> None:
        """A worker no longer knows this name."""
        self._learnt.pop(name, None)

    async def _learn(self) -> bool:
        """Ask all workers for their names, once for all who wait for it. Returns whether all of them answered."""
        if self._round is None or self._round.done():
            self._round = asyncio.create_task(self._ask())
        return await asyncio.shield(self._round)  # one who leaves must not take it from the others

    async def _ask(self) -> bool:
        """Put what is told in place of what was learnt; of those who do not answer, what they said before holds."""
        told = await asyncio.gather(*map(self._info, self._all))
        kept = {name: at for name, at in self._learnt.items() if told[at] is None}
        found: dict[str, int] = {}
        for at, info in enumerate(told):
            for model in info.models if info is not None else ():
                for name in (model.name, *model.aliases):
                    found.setdefault(name, at)  # of several that serve it, the one for everybody comes first
        self._learnt = kept | found
        return None not in told

    async def _info(self, writer: Writer) -> LLMInfo | None:
        try:
            return await writer.info(deadline=Deadline.after(self._info_seconds))
        except MeshError:
            return None


def _unknown(*, all_answered: bool) -> MeshError:
    if all_answered:
        return NotFound("No worker serves this model.", param="model", reason="MODEL_NOT_FOUND", hop="llm")
    return Unavailable(
        "No worker that answers now serves this model, and one does not answer. Come back later, or see /v1/models.",
        param="model",
        hop="llm",
        retry_after=2.0,
    )
