"""The LLM worker's client: a chat or a prompt in, text and tool calls out, piece by piece or whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from mesh.clients.base import AsyncClient, SyncClient, whole_characters
from mesh.clients.llm_wire import (
    chat_to_wire,
    completion_to_wire,
    event_from_wire,
    first_form_from_wire,
    generation_to_wire,
    load_from_wire,
)
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, Unavailable
from mesh.generation import (
    Answer,
    Event,
    Finish,
    FinishReason,
    Generation,
    Header,
    Load,
    Message,
    Piece,
    ResponseFormat,
    Role,
    Sampling,
    Timings,
    TokenCount,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
    Usage,
    fold,
)
from mesh.pb.llm.v1 import llm_pb2 as pb
from mesh.pb.llm.v1.llm_pb2_grpc import LlmServiceStub

__all__ = [
    "Answer",
    "AsyncLLMServiceClient",
    "ChatMessage",
    "Event",
    "Finish",
    "FinishReason",
    "Generation",
    "Header",
    "LLMInfo",
    "LLMLimits",
    "LLMModel",
    "LLMServiceClient",
    "Load",
    "Piece",
    "ResponseFormat",
    "Role",
    "Sampling",
    "Timings",
    "TokenCount",
    "Tool",
    "ToolCall",
    "ToolChoice",
    "ToolChoiceMode",
    "Usage",
]

ChatMessage = Message
"""The name under which callers know a `mesh.generation.Message`."""


@dataclass(frozen=True, slots=True)
class LLMModel:
    """A served model; ``description`` says so when it is only the demo model."""

    name: str
    aliases: tuple[str, ...]
    revision: str
    source: str
    context_tokens: int
    description: str


@dataclass(frozen=True, slots=True)
class LLMLimits:
    """What one request may ask, and how many may run and wait."""

    max_output_tokens: int
    max_request_bytes: int
    max_concurrent_requests: int
    max_queued_requests: int
    max_choices: int = 1


@dataclass(frozen=True, slots=True)
class LLMInfo:
    """What the worker serves, with which engine, and what that can do beyond plain text."""

    models: tuple[LLMModel, ...]
    limits: LLMLimits
    version: str
    engine: str
    engine_version: str
    abilities: tuple[str, ...] = ()


class AsyncLLMServiceClient(AsyncClient):
    """Writes text, on an event loop. Nothing is ever sent twice: a second answer would be a different one."""

    hop_name = "llm"
    service = "llm.v1.LlmService"
    stub_class = LlmServiceStub
    idempotent_methods = ("CountTokens", "GetLoad", "Info")

    async def generate(self, request: Generation, *, deadline: Deadline | None = None) -> AsyncGenerator[Event, None]:
        """One Header, Pieces, one Finish. The Header comes with the first Piece.

        Raises:
            MeshError: also Unavailable when the stream ends without its Finish: a broken answer is never taken for a
                whole one.
        """
        _require_one_input(request)
        with whole_characters():
            if request.prompt is None:
                replies = self.hop.stream(self._stub.Chat, chat_to_wire(request), deadline=deadline)
            else:
                replies = self.hop.stream(self._stub.Complete, completion_to_wire(request), deadline=deadline)
        async with aclosing(self._events(replies, event_from_wire)) as events:
            async for event in events:
                yield event

    async def generate_text(
        self, request: Generation, *, deadline: Deadline | None = None
    ) -> AsyncGenerator[Event, None]:
        """As `generate`, by the RPC of earlier versions: for a worker that has no other yet.

        Raises:
            InvalidRequest: the request asks for more than one text, which that RPC cannot express.
            MeshError: as `generate`.
        """
        _require_one_input(request)
        more = request.tools or request.tool_choice or request.response_format or request.choices > 1
        if more or request.sampling.top_logprobs is not None:
            raise InvalidRequest("Tools, formats, several choices and probabilities need generate.", param="tools")
        with whole_characters():
            replies = self.hop.stream(self._stub.Generate, generation_to_wire(request), deadline=deadline)
        async with aclosing(self._events(replies, first_form_from_wire)) as events:
            async for event in events:
                yield event

    async def _events(
        self, replies: AsyncGenerator[Any, None], read: Callable[[Any], Event | None]
    ) -> AsyncGenerator[Event, None]:
        finish: Finish | None = None
        # Read to the end also after the finish: a stream that is left early counts as cancelled, not as answered.
        async with aclosing(replies):
            async for reply in replies:
                event = read(reply)
                if isinstance(event, Finish):
                    finish = event
                elif event is not None:
                    yield event
        if finish is None:
            raise Unavailable("The answer ended before it was whole.", reason="BROKEN_STREAM", hop=self.hop_name)
        yield finish

    async def complete(self, request: Generation, *, deadline: Deadline | None = None) -> Answer:
        """The whole answer at once. Raises MeshError."""
        return await gathered(self.generate(request, deadline=deadline))

    async def count_tokens(self, request: Generation, *, deadline: Deadline | None = None) -> TokenCount:
        """What the request's prompt takes of the context. Raises MeshError."""
        _require_one_input(request)
        with whole_characters():
            wire = (
                pb.CountTokensRequest(chat=chat_to_wire(request))
                if request.prompt is None
                else pb.CountTokensRequest(complete=completion_to_wire(request))
            )
        reply = await self.hop.call(self._stub.CountTokens, wire, deadline=deadline, evidence=False)
        return TokenCount(reply.model, reply.prompt_tokens, reply.context_tokens)

    async def load(self, *, deadline: Deadline | None = None) -> Load:
        """How busy the worker is. Raises MeshError."""
        reply = await self.hop.call(self._stub.GetLoad, pb.GetLoadRequest(), deadline=deadline, evidence=False)
        return load_from_wire(reply)

    async def info(self, *, deadline: Deadline | None = None) -> LLMInfo:
        """What the worker serves. Raises MeshError."""
        reply = await self.hop.call(self._stub.Info, pb.InfoRequest(), deadline=deadline, evidence=False)
        limits = reply.limits
        return LLMInfo(
            models=tuple(
                LLMModel(m.name, tuple(m.aliases), m.revision, m.source, m.context_tokens, m.description)
                for m in reply.models
            ),
            limits=LLMLimits(
                limits.max_output_tokens,
                limits.max_request_bytes,
                limits.max_concurrent_requests,
                limits.max_queued_requests,
                max(1, limits.max_choices),
            ),
            version=reply.version,
            engine=reply.engine,
            engine_version=reply.engine_version,
            abilities=tuple(reply.abilities),
        )


class LLMServiceClient(SyncClient[AsyncLLMServiceClient]):
    """Writes text, blocking.

    >>> client = LLMServiceClient("127.0.0.1:50054")  # doctest: +SKIP
    >>> client.complete(Generation(messages=(ChatMessage(Role.USER, "What is a hop?"),))).text  # doctest: +SKIP
    """

    async_class = AsyncLLMServiceClient

    def generate(self, request: Generation, *, deadline: Deadline | None = None) -> Iterator[Event]:
        """One Header, Pieces, one Finish. Raises MeshError."""
        return self._iterate(self._client.generate(request, deadline=deadline))

    def generate_text(self, request: Generation, *, deadline: Deadline | None = None) -> Iterator[Event]:
        """As `generate`, by the RPC of earlier versions. Raises MeshError."""
        return self._iterate(self._client.generate_text(request, deadline=deadline))

    def complete(self, request: Generation, *, deadline: Deadline | None = None) -> Answer:
        """The whole answer at once. Raises MeshError."""
        return self._run(self._client.complete(request, deadline=deadline))

    def count_tokens(self, request: Generation, *, deadline: Deadline | None = None) -> TokenCount:
        """What the request's prompt takes of the context. Raises MeshError."""
        return self._run(self._client.count_tokens(request, deadline=deadline))

    def load(self, *, deadline: Deadline | None = None) -> Load:
        """How busy the worker is. Raises MeshError."""
        return self._run(self._client.load(deadline=deadline))

    def info(self, *, deadline: Deadline | None = None) -> LLMInfo:
        """What the worker serves. Raises MeshError."""
        return self._run(self._client.info(deadline=deadline))


async def gathered(events: AsyncIterator[Event]) -> Answer:
    """The whole answer that a stream of events amounts to. Raises what the stream raises."""
    # Closed also where it is not read to its end: that cancels the call.
    source: Any = events
    async with aclosing(source):
        return fold([event async for event in source])


def _require_one_input(request: Generation) -> None:
    if bool(request.messages) == (request.prompt is not None):
        raise InvalidRequest("Give either messages or a prompt, and not both.", param="messages")
