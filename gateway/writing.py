"""Asks the writer, and folds its events into OpenAI's chunks. Chat and completions differ only in how a chunk looks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import Response

from gateway.answers import json_answer
from gateway.catalogue import Capability, Catalogue
from gateway.exchange import Exchange, unix_seconds
from gateway.generation import llm_timings_ms, usage_document
from gateway.peers import Writer
from gateway.settings import GatewaySettings
from gateway.streaming import EVENTS, SSE_DONE, live, sse
from mesh.clients.llm import Completion, Finish, GenerateHeader, Generation, Piece
from mesh.errors import NotFound


class Shape(Protocol):
    """How one endpoint's answers look."""

    id_prefix: str
    object_name: str
    chunk_name: str

    def choice(self, completion: Completion) -> dict[str, Any]:
        """The only choice of a whole answer."""

    def first(self) -> dict[str, Any] | None:
        """The choice of a stream's opening chunk, where there is one."""

    def piece(self, text: str) -> dict[str, Any]:
        """The choice of a chunk that carries text."""

    def last(self, reason: str) -> dict[str, Any]:
        """The choice of the chunk that tells why the text ended."""


@dataclass(frozen=True, slots=True)
class Scribe:
    """Turns generations into OpenAI's answers, whole or streamed."""

    writer: Writer
    catalogue: Catalogue
    settings: GatewaySettings

    async def answer(
        self, exchange: Exchange, generation: Generation, shape: Shape, *, stream: bool, usage: bool
    ) -> Response:
        """The text that ``generation`` asks for.

        Raises:
            MeshError: what the writer raises before the first piece.
        """
        try:
            if not stream:
                return await self._whole(exchange, generation, shape)
            frames = self._chunks(exchange, generation, shape, usage=usage)
            return await live(frames, EVENTS, exchange=exchange, settings=self.settings.streams)
        except NotFound:
            raise await self.catalogue.unknown(generation.model, Capability.CHAT) from None

    async def _whole(self, exchange: Exchange, generation: Generation, shape: Shape) -> Response:
        deadline = exchange.deadline(self.settings.timeouts.llm_seconds)
        completion = await self.writer.complete(generation, deadline=deadline)
        exchange.timed(**llm_timings_ms(completion.timings))
        exchange.note(model=completion.model, **_counts(completion))
        return json_answer(
            {
                "id": f"{shape.id_prefix}{exchange.call.request_id}",
                "object": shape.object_name,
                "created": completion.created_unix_seconds or unix_seconds(),
                "model": completion.model,
                "choices": [shape.choice(completion)],
                "usage": usage_document(completion.usage),
            }
        )

    async def _chunks(
        self, exchange: Exchange, generation: Generation, shape: Shape, *, usage: bool
    ) -> AsyncGenerator[bytes, None]:
        """The events of a stream; ``[DONE]`` only after the writer's finish."""
        deadline = exchange.deadline(self.settings.timeouts.llm_seconds, streamed=True)
        frame = _Frame(exchange, shape, usage=usage)
        events = self.writer.generate(generation, deadline=deadline)
        async with _closing(events) as opened:
            async for event in opened:
                match event:
                    case GenerateHeader():
                        frame.begin(event)
                        if (opening := shape.first()) is not None:
                            yield frame.chunk(opening)
                    case Piece():
                        if event.text:
                            yield frame.chunk(shape.piece(event.text))
                    case Finish():
                        exchange.timed(**llm_timings_ms(event.timings))
                        exchange.note(**_counts(event))
                        yield frame.chunk(shape.last(event.reason.value))
                        if usage:
                            yield frame.usage_chunk(event)
                        yield SSE_DONE
                        return


def _closing(events: AsyncIterator[Any]) -> aclosing[Any]:
    """Leaves the writer's stream at once when the reader leaves: that cancels the call."""
    source: Any = events
    return aclosing(source)


def _counts(result: Completion | Finish) -> dict[str, int]:
    return {"prompt_tokens": result.usage.prompt_tokens, "completion_tokens": result.usage.completion_tokens}


class _Frame:
    """What all chunks of one stream share: id, time and model never change between them."""

    def __init__(self, exchange: Exchange, shape: Shape, *, usage: bool) -> None:
        self._exchange = exchange
        self._shape = shape
        self._shared: dict[str, Any] = {}
        # With include_usage every chunk but the last says that its usage is not known yet.
        self._tail: dict[str, Any] = {"usage": None} if usage else {}

    def begin(self, header: GenerateHeader) -> None:
        self._exchange.note(model=header.model)
        self._shared = {
            "id": f"{self._shape.id_prefix}{self._exchange.call.request_id}",
            "object": self._shape.chunk_name,
            "created": header.created_unix_seconds or unix_seconds(),
            "model": header.model,
        }

    def chunk(self, choice: dict[str, Any]) -> bytes:
        return sse({**self._shared, "choices": [choice], **self._tail})

    def usage_chunk(self, finish: Finish) -> bytes:
        return sse({**self._shared, "choices": [], "usage": usage_document(finish.usage)})
