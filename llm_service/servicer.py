"""llm.v1 on the wire: proto in, domain call, proto out. Nothing is decided here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

import grpc.aio

from llm_service.generation import Event, Finish, FinishReason, Generation, Header, Message, Piece, Role, Sampling
from llm_service.writer import Writer
from mesh.context import Priority
from mesh.errors import InvalidRequest
from mesh.generation import (
    Image,
    Part,
    ResponseFormat,
    Timings,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
    Usage,
)
from mesh.pb.llm.v1 import llm_pb2 as pb
from mesh.pb.llm.v1.llm_pb2_grpc import LlmServiceServicer, add_LlmServiceServicer_to_server
from mesh.serving import call_context, deadline_of
from mesh.serving.calls import ServicerContext
from mesh.version import VERSION

SERVICE = "llm.v1.LlmService"

_ROLES = {
    pb.ROLE_SYSTEM: Role.SYSTEM,
    pb.ROLE_USER: Role.USER,
    pb.ROLE_ASSISTANT: Role.ASSISTANT,
    pb.ROLE_TOOL: Role.TOOL,
}
_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CONTENT_FILTER: pb.FINISH_REASON_CONTENT_FILTER,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
}
_CHOICE_MODES = {
    pb.TOOL_CHOICE_MODE_NONE: ToolChoiceMode.NONE,
    pb.TOOL_CHOICE_MODE_AUTO: ToolChoiceMode.AUTO,
    pb.TOOL_CHOICE_MODE_REQUIRED: ToolChoiceMode.REQUIRED,
    pb.TOOL_CHOICE_MODE_NAMED: ToolChoiceMode.NAMED,
}
_PRIORITIES = {pb.PRIORITY_INTERACTIVE: Priority.INTERACTIVE, pb.PRIORITY_BULK: Priority.BULK}


class LlmServicer(LlmServiceServicer):
    """Serves llm.v1.LlmService from a Writer."""

    def __init__(self, writer: Writer, *, default_deadline_seconds: float, max_request_bytes: int) -> None:
        self._writer = writer
        self._default_deadline_seconds = default_deadline_seconds
        self._max_request_bytes = max_request_bytes

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to a server."""
        add_LlmServiceServicer_to_server(self, server)

    async def Chat(self, request: pb.ChatRequest, context: ServicerContext) -> AsyncGenerator[pb.ChatResponse, None]:
        """Answer a chat. Raises MeshError."""
        async with aclosing(self._write(chat_from_wire(request), context)) as events:
            async for event in events:
                yield pb.ChatResponse(**frame_to_wire(event))

    async def Complete(
        self, request: pb.CompleteRequest, context: ServicerContext
    ) -> AsyncGenerator[pb.CompleteResponse, None]:
        """Continue a prompt. Raises MeshError."""
        async with aclosing(self._write(completion_from_wire(request), context)) as events:
            async for event in events:
                yield pb.CompleteResponse(**frame_to_wire(event))

    async def Generate(
        self, request: pb.GenerateRequest, context: ServicerContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Write the continuation of a chat or a prompt. Raises MeshError."""
        asked = generation_from_wire(request)
        if asked.choices > 1 or asked.sampling.top_logprobs is not None:
            raise InvalidRequest(
                "Generate answers with one text alone; for several, or for probabilities, call Chat or Complete.",
                param="n" if asked.choices > 1 else "top_logprobs",
            )
        async with aclosing(self._write(asked, context)) as events:
            async for event in events:
                if not isinstance(event, Piece) or event.text:  # it has no place for thoughts
                    yield event_to_wire(event)

    def _write(self, request: Generation, context: ServicerContext) -> AsyncGenerator[Event, None]:
        deadline = deadline_of(context, self._default_deadline_seconds)
        return self._writer.generate(request, deadline, call_context(context).priority)

    async def CountTokens(self, request: pb.CountTokensRequest, context: ServicerContext) -> pb.CountTokensResponse:
        """What a prompt takes of the context. Raises MeshError."""
        asked = chat_from_wire(request.chat) if request.HasField("chat") else completion_from_wire(request.complete)
        counted = await self._writer.count(asked, deadline_of(context, self._default_deadline_seconds))
        return pb.CountTokensResponse(
            prompt_tokens=counted.prompt_tokens, context_tokens=counted.context_tokens, model=counted.model
        )

    async def GetLoad(self, request: pb.GetLoadRequest, context: ServicerContext) -> pb.GetLoadResponse:  # noqa: ARG002 - gRPC's
        """How busy worker and engine are now."""
        load = self._writer.load()
        engine = None
        if load.engine is not None:
            engine = pb.EngineLoad(
                running_requests=load.engine.running,
                waiting_requests=load.engine.waiting,
                kv_cache_usage=load.engine.kv_used,
                kv_cache_tokens=load.engine.kv_tokens,
            )
        return pb.GetLoadResponse(
            running_requests=load.running,
            waiting_requests=load.waiting,
            max_running_requests=load.max_running,
            max_waiting_requests=load.max_waiting,
            engine=engine,
        )

    async def Info(self, request: pb.InfoRequest, context: ServicerContext) -> pb.InfoResponse:  # noqa: ARG002 - gRPC's
        """What is served here, by which engine and within which limits."""
        writer = self._writer
        served = writer.served
        model = pb.Model(
            name=writer.model_name,
            aliases=writer.aliases,
            revision=served.revision,
            source=served.source,
            context_tokens=served.context_tokens,
            description=served.description,
        )
        limits = pb.Limits(
            max_output_tokens=writer.limits.output_tokens,
            max_request_bytes=self._max_request_bytes,
            max_concurrent_requests=writer.limits.concurrent,
            max_queued_requests=writer.limits.queued,
            max_choices=writer.max_choices,
        )
        return pb.InfoResponse(
            models=[model],
            limits=limits,
            version=VERSION,
            engine=writer.engine.name,
            engine_version=writer.engine.version(),
            abilities=sorted(ability.value for ability in writer.engine.abilities),
        )


def chat_from_wire(request: pb.ChatRequest) -> Generation:
    """The request as a domain value. Raises InvalidRequest for a message without a role or a part without content."""
    return Generation(
        messages=_messages(request.messages),
        model=request.model,
        sampling=_sampling(request.sampling),
        tools=tuple(
            Tool(tool.name, tool.description, tool.parameters_json_schema, _set(tool, "strict"))
            for tool in request.tools
        ),
        tool_choice=_tool_choice(request.tool_choice) if request.HasField("tool_choice") else None,
        parallel_tool_calls=_set(request, "parallel_tool_calls"),
        response_format=_format(request.response_format),
        priority=_PRIORITIES.get(request.priority),
    )


def completion_from_wire(request: pb.CompleteRequest) -> Generation:
    """The request as a domain value."""
    return Generation(
        prompt=request.prompt,
        model=request.model,
        sampling=_sampling(request.sampling),
        response_format=_format(request.response_format),
        priority=_PRIORITIES.get(request.priority),
    )


def generation_from_wire(request: pb.GenerateRequest) -> Generation:
    """The request as a domain value. Raises InvalidRequest for a message without a role."""
    return Generation(
        messages=_messages(request.chat.messages),
        prompt=request.prompt if request.HasField("prompt") else None,
        model=request.model,
        sampling=_sampling(request.sampling),
    )


def _messages(sent: Iterable[pb.Message]) -> tuple[Message, ...]:
    messages = []
    for index, message in enumerate(sent):
        role = _ROLES.get(message.role)
        if role is None:
            raise InvalidRequest(
                f"Message {index} has no known role; use system, user, assistant or tool.",
                param=f"messages[{index}].role",
            )
        messages.append(
            Message(
                role,
                message.content,
                message.name,
                tuple(_part(part, f"messages[{index}].parts") for part in message.parts),
                tuple(ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls),
                message.tool_call_id,
            )
        )
    return tuple(messages)


def _part(part: pb.ContentPart, where: str) -> Part:
    kind = part.WhichOneof("part")
    if kind == "text":
        return str(part.text)
    if kind == "image":
        return Image(part.image.data, part.image.media_type, part.image.detail)
    raise InvalidRequest(f"{where} holds a part that is neither a text nor an image.", param=where)


def _sampling(sent: pb.Sampling) -> Sampling:
    return Sampling(
        stop=tuple(sent.stop),
        **{
            name: _set(sent, name)
            for name in (
                "temperature", "top_p", "max_tokens", "seed", "presence_penalty", "frequency_penalty", "top_k", "min_p",
                "repetition_penalty", "n", "top_logprobs",
            )
        },
    )  # fmt: skip


def _set(message: Any, name: str) -> Any:
    """An optional field's value; None where it was not sent, which is not the same as zero."""
    return getattr(message, name) if message.HasField(name) else None


def _tool_choice(sent: pb.ToolChoice) -> ToolChoice:
    mode = _CHOICE_MODES.get(sent.mode)
    if mode is None:
        raise InvalidRequest("tool_choice has no known mode; use none, auto, required or named.", param="tool_choice")
    return ToolChoice(mode, sent.name)


def _format(sent: pb.ResponseFormat) -> ResponseFormat | None:
    kind = sent.WhichOneof("format")
    if kind is None:
        return None
    if kind == "json_object":
        return ResponseFormat()
    asked = sent.json_schema
    return ResponseFormat(asked.schema, asked.name, asked.description, _set(asked, "strict"))


def frame_to_wire(event: Event) -> dict[str, Any]:
    """One frame of a chat's or completion's answer: its field, by name."""
    match event:
        case Header(model, created, usage):
            start = pb.AnswerStart(model=model, created_unix_seconds=created, usage=_usage(usage))
            return {"start": start}
        case Piece():
            return {"delta": _delta(event)}
        case Finish(endings, usage, timings):
            choices = [pb.ChoiceFinish(reason=_REASONS[ending.reason], stop=ending.stop) for ending in endings]
            return {"finish": pb.AnswerFinish(choices=choices, usage=_usage(usage), timings=_timings(timings))}


def event_to_wire(event: Event) -> pb.GenerateResponse:
    """One frame of an answer in the first form."""
    match event:
        case Header(model, created):
            return pb.GenerateResponse(header=pb.GenerateHeader(model=model, created_unix_seconds=created))
        case Piece():
            return pb.GenerateResponse(piece=pb.GeneratePiece(text=event.text))
        case Finish(_, usage, timings):
            finish = pb.GenerateFinish(reason=_REASONS[event.reason], usage=_usage(usage), timings=_timings(timings))
            return pb.GenerateResponse(finish=finish)


def _delta(piece: Piece) -> pb.AnswerDelta:
    delta = pb.AnswerDelta(choice=piece.choice, text=piece.text, reasoning=piece.reasoning)
    for call in piece.tool_calls:
        delta.tool_calls.add(index=call.index, id=call.id, name=call.name, arguments=call.arguments)
    delta.logprobs.extend(map(_logprob, piece.logprobs))
    return delta


def _logprob(told: TokenLogprob) -> pb.TokenLogprob:
    top = [pb.TopLogprob(token=each.token, token_bytes=each.token_bytes, logprob=each.logprob) for each in told.top]
    return pb.TokenLogprob(token=told.token, token_bytes=told.token_bytes, logprob=told.logprob, top=top)


def _usage(usage: Usage | None) -> pb.Usage | None:
    if usage is None:
        return None
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_prompt_tokens=usage.cached_prompt_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def _timings(timings: Timings) -> pb.Timings:
    return pb.Timings(total_us=timings.total_us, queue_us=timings.queue_us, first_token_us=timings.first_token_us)
