"""Asks the writer, and passes its answer on, whole or event by event. How that looks is each dialect's own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from starlette.responses import Response

from gateway.answers import json_answer
from gateway.catalogue import Capability, Catalogue
from gateway.exchange import Exchange
from gateway.generation import llm_timings_ms
from gateway.peers import Writer
from gateway.settings import GatewaySettings
from gateway.streaming import StreamKind, live
from gateway.writers import Writers
from mesh.errors import NotFound
from mesh.generation import Answer, Finish, Generation, Header, Piece, TokenCount, Usage, check, check_input


class Rendering(Protocol):
    """How one request's answer looks in a dialect. A stream is ``begin``, pieces and ``end``, any of them empty."""

    kind: StreamKind

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer in one document."""

    def begin(self, header: Header) -> bytes:
        """What a stream opens with."""

    def piece(self, piece: Piece) -> bytes:
        """Some of the answer."""

    def end(self, finish: Finish) -> bytes:
        """What tells that the stream is whole."""


@dataclass(frozen=True, slots=True)
class Scribe:
    """Turns generations into answers, whole or streamed."""

    writers: Writers
    catalogue: Catalogue
    settings: GatewaySettings

    async def answer(
        self, exchange: Exchange, generation: Generation, rendering: Rendering, *, stream: bool
    ) -> Response:
        """What ``generation`` asks for.

        Raises:
            MeshError: it is out of bounds, or what the writer raises before the first piece.
        """
        check(generation)
        try:
            writer, model = await self.writers.find(generation.model)
            asked = replace(generation, model=model)
            if not stream:
                return await self._whole(exchange, writer, asked, rendering)
            frames = self._frames(exchange, writer, asked, rendering)
            return await live(frames, rendering.kind, exchange=exchange, settings=self.settings.streams)
        except NotFound:
            raise await self._unknown(generation.model) from None

    async def count(self, exchange: Exchange, generation: Generation) -> TokenCount:
        """What the prompt of ``generation`` takes.

        Raises:
            MeshError: it is out of bounds, or what the writer raises.
        """
        check_input(generation)
        deadline = exchange.deadline(self.settings.timeouts.llm_seconds)
        try:
            writer, model = await self.writers.find(generation.model)
            counted = await writer.count_tokens(replace(generation, model=model), deadline=deadline)
        except NotFound:
            raise await self._unknown(generation.model) from None
        exchange.note(model=counted.model, prompt_tokens=counted.prompt_tokens)
        return counted

    async def _unknown(self, model: str) -> NotFound:
        self.writers.forget(model)
        return await self.catalogue.unknown(model, Capability.CHAT)

    async def _whole(
        self, exchange: Exchange, writer: Writer, generation: Generation, rendering: Rendering
    ) -> Response:
        deadline = exchange.deadline(self.settings.timeouts.llm_seconds)
        answer = await writer.complete(generation, deadline=deadline)
        exchange.timed(**llm_timings_ms(answer.timings))
        exchange.note(model=answer.model, **_counts(answer.usage))
        return json_answer(rendering.whole(answer))

    async def _frames(
        self, exchange: Exchange, writer: Writer, generation: Generation, rendering: Rendering
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a stream; its end only after the writer's finish.

        What it opens with leaves together with the first piece: until a piece is there, a failure is still a status.
        """
        deadline = exchange.deadline(self.settings.timeouts.llm_seconds, streamed=True)
        opening = b""
        async with _closing(writer.generate(generation, deadline=deadline)) as events:
            async for event in events:
                match event:
                    case Header():
                        exchange.note(model=event.model)
                        opening = rendering.begin(event)
                        continue
                    case Piece():
                        frame = rendering.piece(event)
                    case Finish():
                        exchange.timed(**llm_timings_ms(event.timings))
                        exchange.note(**_counts(event.usage))
                        frame = rendering.end(event)
                if opening or frame:
                    yield opening + frame
                    opening = b""


def _closing(events: AsyncIterator[Any]) -> aclosing[Any]:
    """Leaves the writer's stream at once when the reader leaves: that cancels the call."""
    source: Any = events
    return aclosing(source)


def _counts(usage: Usage | None) -> dict[str, int]:
    if usage is None:
        return {}
    return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
