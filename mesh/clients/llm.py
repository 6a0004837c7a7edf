"""The LLM worker's client: a chat or a prompt in, text out, piece by piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import Enum

from mesh.clients.base import AsyncClient, SyncClient, whole_characters
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, Unavailable
from mesh.pb.llm.v1 import llm_pb2 as pb
from mesh.pb.llm.v1.llm_pb2_grpc import LlmServiceStub


class Role(Enum):
    """Who speaks in a chat."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class FinishReason(Enum):
    """Why the text ended."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a chat; ``name`` is the speaker's, where a template uses it."""

    role: Role
    content: str
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen; None leaves the engine's default. Bounds: llm.v1.Sampling."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What to write: the answer to ``messages``, or the continuation of ``prompt`` as it stands; give one of them."""

    messages: tuple[ChatMessage, ...] = ()
    prompt: str | None = None
    model: str = ""
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class GenerateHeader:
    """The first event: who writes."""

    model: str
    created_unix_seconds: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the text."""

    text: str


@dataclass(frozen=True, slots=True)
class LLMUsage:
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class LLMTimings:
    """Where the time went in the worker, in microseconds."""

    total_us: int
    queue_us: int
    first_token_us: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of a whole stream."""

    reason: FinishReason
    usage: LLMUsage
    timings: LLMTimings


GenerateEvent = GenerateHeader | Piece | Finish


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    model: str
    created_unix_seconds: int
    text: str
    reason: FinishReason
    usage: LLMUsage
    timings: LLMTimings


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


@dataclass(frozen=True, slots=True)
class LLMInfo:
    """What the worker serves, and with which engine."""

    models: tuple[LLMModel, ...]
    limits: LLMLimits
    version: str
    engine: str
    engine_version: str


class AsyncLLMServiceClient(AsyncClient):
    """Writes text, on an event loop. Nothing is ever sent twice: a second answer would be a different one."""

    hop_name = "llm"
    service = "llm.v1.LlmService"
    stub_class = LlmServiceStub
    idempotent_methods = ("Info",)

    async def generate(
        self, request: Generation, *, deadline: Deadline | None = None
    ) -> AsyncGenerator[GenerateEvent, None]:
        """One GenerateHeader, Pieces, one Finish.

        Raises:
            MeshError: also Unavailable when the stream ends without its Finish: a broken answer is never taken for a
                whole one.
        """
        with whole_characters():
            wire = _to_wire(request)
        finish: Finish | None = None
        # Read to the end also after the finish: a stream that is left early counts as cancelled, not as answered.
        async with aclosing(self.hop.stream(self._stub.Generate, wire, deadline=deadline)) as replies:
            async for reply in replies:
                event = _event_from_wire(reply)
                if isinstance(event, Finish):
                    finish = event
                else:
                    yield event
        if finish is None:
            raise Unavailable("The answer ended before it was whole.", reason="BROKEN_STREAM", hop=self.hop_name)
        yield finish

    async def complete(self, request: Generation, *, deadline: Deadline | None = None) -> Completion:
        """The whole answer at once. Raises MeshError."""
        header = GenerateHeader("", 0)
        pieces: list[str] = []
        async with aclosing(self.generate(request, deadline=deadline)) as events:
            async for event in events:
                match event:
                    case GenerateHeader():
                        header = event
                    case Piece():
                        pieces.append(event.text)
                    case Finish():
                        return Completion(
                            header.model,
                            header.created_unix_seconds,
                            "".join(pieces),
                            event.reason,
                            event.usage,
                            event.timings,
                        )
        raise AssertionError("generate ends with Finish or raises")

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
            ),
            version=reply.version,
            engine=reply.engine,
            engine_version=reply.engine_version,
        )


class LLMServiceClient(SyncClient[AsyncLLMServiceClient]):
    """Writes text, blocking.

    >>> client = LLMServiceClient("127.0.0.1:50054")  # doctest: +SKIP
    >>> client.complete(Generation(messages=(ChatMessage(Role.USER, "What is a hop?"),))).text  # doctest: +SKIP
    """

    async_class = AsyncLLMServiceClient

    def generate(self, request: Generation, *, deadline: Deadline | None = None) -> Iterator[GenerateEvent]:
        """One GenerateHeader, Pieces, one Finish. Raises MeshError."""
        return self._iterate(self._client.generate(request, deadline=deadline))

    def complete(self, request: Generation, *, deadline: Deadline | None = None) -> Completion:
        """The whole answer at once. Raises MeshError."""
        return self._run(self._client.complete(request, deadline=deadline))

    def info(self, *, deadline: Deadline | None = None) -> LLMInfo:
        """What the worker serves. Raises MeshError."""
        return self._run(self._client.info(deadline=deadline))


def _to_wire(request: Generation) -> pb.GenerateRequest:
    if bool(request.messages) == (request.prompt is not None):
        raise InvalidRequest("Give either messages or a prompt, and not both.", param="messages")
    sampling = request.sampling
    wire = pb.GenerateRequest(
        model=request.model,
        sampling=pb.Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            stop=sampling.stop,
            seed=sampling.seed,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
        ),
    )
    if request.prompt is not None:
        wire.prompt = request.prompt
    for message in request.messages:
        wire.chat.messages.add(
            role=pb.Role.Value(f"ROLE_{message.role.name}"), content=message.content, name=message.name
        )
    return wire


def _event_from_wire(reply: pb.GenerateResponse) -> GenerateEvent:
    kind = reply.WhichOneof("frame")
    if kind == "header":
        return GenerateHeader(reply.header.model, reply.header.created_unix_seconds)
    if kind == "piece":
        return Piece(reply.piece.text)
    finish = reply.finish
    name = pb.FinishReason.Name(finish.reason).removeprefix("FINISH_REASON_")
    return Finish(
        reason=FinishReason[name] if name in FinishReason.__members__ else FinishReason.STOP,
        usage=LLMUsage(finish.usage.prompt_tokens, finish.usage.completion_tokens),
        timings=LLMTimings(finish.timings.total_us, finish.timings.queue_us, finish.timings.first_token_us),
    )
