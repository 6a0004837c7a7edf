"""One loaded model behind its shared batches: its names, its limits, its tokenizing threads, its life."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from inference.admission import Batched, R, Sized, W
from inference.batcher import Batcher, BatchLimits
from inference.loading import LoadedModel
from inference.room import Reservation
from inference.traces import tell_tokenized
from mesh import tracing
from mesh.clock import monotonic
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import NotFound, PayloadTooLarge

_INLINE_CHARACTERS = 4096
"""Tokenizing this much takes less time than handing it to another thread and back."""
_FIRST_DENSITY = 0.25
"""Tokens in a character of English, until this worker's own requests have told."""
_DENSITY_WEIGHT = 0.05
"""Of the newest request in the running average."""
_LEARNED_CHARACTERS = 64
"""Shorter texts are mostly special tokens, and say nothing about the density of longer ones."""


class Readable(Sized, Protocol):
    """A request as the model will read it."""

    @property
    def truncated(self) -> tuple[int, ...]:
        """Positions of the inputs that were cut."""
        ...


T = TypeVar("T", bound=Readable)


@dataclass(frozen=True, slots=True)
class TextSize:
    """How much text a request holds, before truncation.

    Attributes:
        tokens: what the model will read of it, where that is known: it came as token ids, each of them a character.
    """

    items: int
    characters: int
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLimits:
    """How much one request may hold, and how much may wait.

    Attributes:
        batch_tokens: 0 means what the engine was fastest with.
    """

    items_per_request: int
    tokens_per_request: int
    queued_tokens: int
    batch_tokens: int = 0


class ModelRunner(Generic[W, R]):
    """Serves one loaded model. ``start`` on the event loop before the first ``submit``.

    Args:
        compute: as Batcher's ``run``.
        capability: name for metrics and log lines.
        aliases: names that clients may use beside the model's own.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        compute: Callable[[Sequence[W]], Sequence[R]],
        limits: RunnerLimits,
        *,
        capability: str,
        aliases: Sequence[str] = (),
    ) -> None:
        self.limits = limits
        self.name = loaded.model.name
        self.aliases = tuple(dict.fromkeys(alias for alias in aliases if alias != self.name))
        self._tokens_per_character = _FIRST_DENSITY
        self._max_input_tokens = loaded.tokenizer.max_tokens
        # One for each lane: a bulk job's texts must not be in front of an interactive request's.
        self._tokenizing = {
            lane: ThreadPoolExecutor(1, thread_name_prefix=f"tokenizing-{lane.value}") for lane in Priority
        }
        self._batcher: Batcher[W, R] = Batcher(
            compute,
            BatchLimits(
                batch_tokens=limits.batch_tokens or loaded.verdict.batch_tokens,
                queued_tokens=limits.queued_tokens,
                initial_tokens_per_second=loaded.verdict.tokens_per_second,
            ),
            capability=capability,
            give_way=loaded.engine.give_way,
        )

    def start(self) -> None:
        """Start the engine's thread. Call on the event loop that will submit."""
        self._batcher.start()

    def progress(self) -> float:
        """Seconds for which admitted work has waited without progress; 0.0 when idle."""
        return self._batcher.progress()

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for the engine now."""
        return self._batcher.queued_tokens

    def occupied(self) -> bool:
        """Whether the engine computes a batch now that is no canary."""
        return self._batcher.occupied()

    def failures(self) -> int:
        """How many batches the engine failed since it last computed one; 0 when all is well."""
        return self._batcher.failures()

    async def stop(self) -> None:
        """Finish what was admitted and end the engine's thread."""
        await self._batcher.stop()
        for lane in self._tokenizing.values():
            lane.shutdown(wait=False)

    def require_served(self, model: str) -> None:
        """Raise NotFound where a request names a model other than this one."""
        known = (self.name, *self.aliases)
        if model and model not in known:
            raise NotFound(
                f"The model {model[:200]!r} is not served here. Served: {', '.join(known)}.",
                reason="MODEL_NOT_SERVED",
                param="model",
            )

    def require_items(self, count: int, *, param: str) -> None:
        """Raise PayloadTooLarge where a request has more items than allowed."""
        allowed = self.limits.items_per_request
        if count > allowed:
            raise PayloadTooLarge(
                f"{param} has {count} items and {allowed} are allowed at once. Send them in parts.",
                reason="TOO_MANY_INPUTS",
                param=param,
            )

    def require_tokens(self, count: int, *, param: str) -> None:
        """Raise PayloadTooLarge where a request has more tokens than allowed."""
        allowed = self.limits.tokens_per_request
        if count > allowed:
            raise PayloadTooLarge(
                f"The request has {count} tokens and {allowed} are allowed at once. Send it in parts.",
                reason="TOO_MANY_TOKENS",
                param=param,
            )

    async def tokenize(
        self, size: TextSize, work: Callable[[], T], *, deadline: Deadline, priority: Priority, canary: bool = False
    ) -> T:
        """Run ``work``, which tokenizes so much text: here when it is little, else off the event loop.

        Raises:
            Overloaded, Unavailable: there is no room for what will come of it, so nothing was tokenized.
        """
        if canary:
            return work()
        began = monotonic()
        with self._batcher.reserved(self._estimate(size), deadline=deadline, priority=priority):
            if size.characters <= _INLINE_CHARACTERS:
                found = work()
            else:
                found = await asyncio.get_running_loop().run_in_executor(self._tokenizing[priority], work)
        self._learn_density(size, found)
        if tracing.active is not None:
            tell_tokenized(began, items=size.items, tokens=found.tokens, priority=priority)
        return found

    def reserved(self, tokens: int, *, deadline: Deadline, priority: Priority) -> AbstractContextManager[Reservation]:
        """See Batcher.reserved."""
        return self._batcher.reserved(tokens, deadline=deadline, priority=priority)

    async def submit(
        self,
        works: Sequence[W],
        *,
        deadline: Deadline,
        priority: Priority,
        canary: bool = False,
        reservation: Reservation | None = None,
    ) -> Batched[R]:
        """See Batcher.submit."""
        return await self._batcher.submit(
            works, deadline=deadline, priority=priority, canary=canary, reservation=reservation
        )

    def _estimate(self, size: TextSize) -> int:
        """About how many tokens will come of it, never more than can."""
        if size.tokens is not None:
            return size.tokens
        most = min(size.items * self._max_input_tokens, self.limits.tokens_per_request)
        return max(1, min(round(size.characters * self._tokens_per_character), most))

    def _learn_density(self, size: TextSize, found: Readable) -> None:
        """Only from what tells: long texts that were read whole. One client's requests weigh on everybody's."""
        too_short = size.characters < _LEARNED_CHARACTERS * max(1, size.items)
        if too_short or found.truncated or size.tokens is not None:
            return
        density = min(1.0, found.tokens / size.characters)
        self._tokens_per_character += _DENSITY_WEIGHT * (density - self._tokens_per_character)


def short_name(name: str) -> str:
    """The name without its owner, as many clients write it."""
    return name.rpartition("/")[2]
