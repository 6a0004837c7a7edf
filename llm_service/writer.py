"""One request from its arrival to its last piece: checked, admitted, written by the engine, timed, counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from llm_service.abilities import Ability, require_able
from llm_service.admission import Admission
from llm_service.engines import Engine, Served
from llm_service.generation import (
    Accepted,
    Ended,
    EngineEvent,
    Event,
    Finish,
    Generation,
    Header,
    Load,
    Piece,
    Timings,
    TokenCount,
    Usage,
    check,
    check_input,
)
from llm_service.metrics import (
    ENGINE,
    FIRST_PIECE,
    RUNNING,
    RUNNING_LIMIT,
    TOKENS,
    WAITING,
    WAITING_LIMIT,
    Published,
)
from llm_service.schemas import check_schemas
from llm_service.traces import Written, told, waiting
from mesh.clock import Clock, monotonic
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, MeshError, NotFound, Overloaded, Unavailable
from mesh.generation import MAX_CHOICES

_COUNTED_AT_ONCE = 32
_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_IMAGE = 1024


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask, and how many may run and wait. ``concurrent`` 0 means what the engine does well."""

    output_tokens: int = 1024
    concurrent: int = 0
    queued: int = 64


@dataclass(frozen=True)
class Names:
    """What callers call the model: ``served`` in place of its own name where it is not empty, and aliases."""

    served: str = ""
    aliases: tuple[str, ...] = ()


class Writer:
    """Writes text with one engine."""

    def __init__(
        self, engine: Engine, *, limits: Limits = Limits(), names: Names = Names(), clock: Clock = monotonic
    ) -> None:
        self.engine = engine
        self.limits = Limits(
            output_tokens=limits.output_tokens,
            concurrent=limits.concurrent or engine.concurrency,
            queued=limits.queued,
        )
        self.aliases = names.aliases
        self._served_name = names.served
        self._clock = clock
        self._served: Served | None = None
        self._counting = 0
        self._admission = Admission(
            concurrency=self.limits.concurrent, queue=limits.queued, engine_load=engine.load, clock=clock
        )
        RUNNING.set_function(lambda: self._admission.running)
        WAITING.set_function(lambda: self._admission.waiting)
        RUNNING_LIMIT.set(self.limits.concurrent)
        WAITING_LIMIT.set(self.limits.queued)
        ENGINE.publish(self._published)

    async def start(self) -> None:
        """Bring the engine up. Raises MeshError."""
        self._served = await self.engine.start()

    @property
    def served(self) -> Served:
        """The model. Raises Unavailable before ``start`` is done."""
        if self._served is None:
            raise Unavailable("The model is still being loaded.", retry_after=2.0)
        return self._served

    @property
    def model_name(self) -> str:
        """The canonical name that callers use."""
        return self._served_name or self.served.name

    @property
    def max_choices(self) -> int:
        """How many answers to one prompt there may be."""
        return MAX_CHOICES if Ability.CHOICES in self.engine.abilities else 1

    async def generate(
        self, request: Generation, deadline: Deadline, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncGenerator[Event, None]:
        """One Header, Pieces, one Finish. Closing it stops the engine's work on it.

        The Header comes with the first Piece: until something is written, a failure is a failure and no broken answer.

        Raises:
            MeshError: before the Header as a rule; after it Unavailable, Internal or DeadlineExceeded, and the text
                is not whole.
        """
        arrived = self._clock()
        self._require_known(request.model)
        check(request, max_output_tokens=self.limits.output_tokens)
        require_able(request, self.engine.abilities, self.engine.name)
        self._require_healthy()
        # Let in before it is prepared: a refusal costs no counting of tokens.
        lane = request.priority or priority
        with self._admission.place(deadline, lane, answers=request.choices) as place:
            await check_schemas(request)
            request = await self.engine.prepare(request)
            with waiting(arrived, self._clock) as has_place:
                async with (
                    place.slot(_tokens_to_read(request)),
                    aclosing(self._told(request, deadline, arrived)) as events,
                ):
                    has_place()
                    async for event in events:
                        yield event

    def _told(self, request: Generation, deadline: Deadline, arrived: float) -> AsyncGenerator[Event, None]:
        about = Written(
            request=request, model=self.model_name, engine=self.engine.name, arrived=arrived, clock=self._clock
        )
        return told(self._write(request, deadline, arrived), about)

    async def count(self, request: Generation, deadline: Deadline) -> TokenCount:
        """What the prompt takes of the context; nothing is written.

        Raises:
            MeshError: as `generate`, and WrongState where the engine cannot count. Overloaded where it counts for
                many already: that is the engine's work too, though nobody has a slot for it.
        """
        self._require_known(request.model)
        check_input(request)
        require_able(request, self.engine.abilities, self.engine.name)
        self._require_healthy()
        if self._counting >= _COUNTED_AT_ONCE:
            raise Overloaded("Many prompts are being counted; come back later.", reason="COUNTING", retry_after=0.5)
        self._counting += 1
        try:
            async with asyncio.timeout(deadline.remaining()):
                await check_schemas(request)
                counted = await self.engine.count(request)
        except TimeoutError:
            raise DeadlineExceeded(
                "The request's time was up before the prompt was counted; allow more time."
            ) from None
        finally:
            self._counting -= 1
        return TokenCount(self.model_name, counted, self.served.context_tokens)

    def load(self) -> Load:
        """How busy worker and engine are. Waits for nothing."""
        return Load(
            running=self._admission.running,
            waiting=self._admission.waiting,
            max_running=self.limits.concurrent,
            max_waiting=self.limits.queued,
            engine=self.engine.load(),
        )

    async def _write(self, request: Generation, deadline: Deadline, arrived: float) -> AsyncGenerator[Event, None]:
        admitted = self._clock()
        self._require_healthy()
        prompt = Usage(request.prompt_tokens, 0) if request.prompt_tokens else None
        first: float | None = None
        async with aclosing(_until(deadline, self.engine.generate(request))) as written:
            async for event in written:
                match event:
                    case Accepted(Usage() as told):  # which may have come with the first tokens
                        prompt = Usage(told.prompt_tokens, 0, told.cached_prompt_tokens)
                    case Piece():
                        if first is None:
                            first = self._clock()
                            FIRST_PIECE.observe(first - arrived)
                            yield self._header(prompt)
                        yield event
                    case Ended(endings, usage):
                        if first is None:
                            yield self._header(prompt)
                        _count(usage)
                        yield Finish(endings, usage, self._timings(arrived, admitted, first))
                        return
        raise Unavailable("The engine's answer broke off before it was whole.", reason="ENGINE_LOST", retry_after=1.0)

    def _header(self, prompt: Usage | None) -> Header:
        return Header(self.model_name, int(time.time()), prompt)

    async def canary(self) -> None:
        """Prove an idle engine, in a request's place, so that no request is beside it when the engine fails.

        An engine that is being mended has said so by ``unhealthy``, and is well as soon as it is back: that is no
        failure for the watchdog to count, which would end the worker over it.

        Raises:
            Overloaded: the engine is busy; a busy one proves itself.
            MeshError: it failed, and nothing is done about it here.
        """
        if self.engine.unhealthy() is not None:
            return
        try:
            with self._admission.idle_slot():
                await self.engine.prove()
        except MeshError:
            if self.engine.unhealthy() is None:
                raise

    def unhealthy(self) -> MeshError | None:
        """None while the engine can write, otherwise why not."""
        return self.engine.unhealthy()

    async def stop(self) -> None:
        """End the engine."""
        await self.engine.stop()

    def _published(self) -> Published:
        served = self._served
        return Published(
            model=self._served_name or (served.name if served else ""),
            running=self._admission.running,
            waiting=self._admission.waiting,
            load=self.engine.load(),
            families=self.engine.families(),
        )

    def _require_healthy(self) -> None:
        if (failure := self.engine.unhealthy()) is not None:
            raise failure.with_traceback(None)  # one object for many callers: their frames must not pile up on it

    def _require_known(self, model: str) -> None:
        known = (self.model_name, *self.aliases)
        if model and model not in known:
            raise NotFound(
                f"There is no model {model[:200]!r} here; this worker serves {', '.join(known)}.",
                reason="MODEL_NOT_FOUND",
                param="model",
            )

    def _timings(self, arrived: float, admitted: float, first: float | None) -> Timings:
        return Timings(
            total_us=_microseconds(self._clock() - arrived),
            queue_us=_microseconds(admitted - arrived),
            first_token_us=0 if first is None else _microseconds(first - arrived),
        )


async def _until(deadline: Deadline, written: AsyncGenerator[EngineEvent, None]) -> AsyncGenerator[EngineEvent, None]:
    """The events, as long as somebody waits for them.

    Each wait has its own timeout: one that spanned the caller's turns would strike in the caller's code.
    """
    async with aclosing(written) as events:
        while True:
            try:
                async with asyncio.timeout(deadline.remaining()):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise DeadlineExceeded(
                    "The request's time was up before the answer was whole; allow more time or ask for fewer tokens."
                ) from None
            yield event


def _tokens_to_read(request: Generation) -> int:
    """How much the engine has to read, for its load: guessed where nobody can count it."""
    images = sum(len(message.images) for message in request.messages)
    return (request.prompt_tokens or sum(map(len, request.texts)) // _CHARACTERS_PER_TOKEN) + images * _TOKENS_PER_IMAGE


def _count(usage: Usage | None) -> None:
    if usage is not None:
        TOKENS.labels("prompt").inc(usage.prompt_tokens)
        TOKENS.labels("completion").inc(usage.completion_tokens)


def _microseconds(seconds: float) -> int:
    return max(0, round(seconds * 1_000_000))
