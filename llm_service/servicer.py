"""llm.v1 on the wire: proto in, domain call, proto out. Nothing is decided here."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc.aio

from llm_service.generation import Event, Finish, FinishReason, Generation, Header, Message, Piece, Role, Sampling
from llm_service.writer import Writer
from mesh.errors import InvalidRequest
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
}


class LlmServicer(LlmServiceServicer):
    """Serves llm.v1.LlmService from a Writer."""

    def __init__(self, writer: Writer, *, default_deadline_seconds: float, max_request_bytes: int) -> None:
        self._writer = writer
        self._default_deadline_seconds = default_deadline_seconds
        self._max_request_bytes = max_request_bytes

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to a server."""
        add_LlmServiceServicer_to_server(self, server)

    async def Generate(
        self, request: pb.GenerateRequest, context: ServicerContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Write the continuation of a chat or a prompt. Raises MeshError."""
        deadline = deadline_of(context, self._default_deadline_seconds)
        written = self._writer.generate(generation_from_wire(request), deadline, call_context(context).priority)
        async with aclosing(written) as events:
            async for event in events:
                yield event_to_wire(event)

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
        )
        return pb.InfoResponse(
            models=[model],
            limits=limits,
            version=VERSION,
            engine=writer.engine.name,
            engine_version=writer.engine.version(),
        )


def generation_from_wire(request: pb.GenerateRequest) -> Generation:
    """The request as a domain value.

    Raises:
        InvalidRequest: a message without a role.
    """
    messages = []
    for index, message in enumerate(request.chat.messages):
        role = _ROLES.get(message.role)
        if role is None:
            raise InvalidRequest(
                f"Message {index} has no known role; use system, user, assistant or tool.",
                param=f"messages[{index}].role",
            )
        messages.append(Message(role, message.content, message.name))
    sent = request.sampling
    sampling = Sampling(
        temperature=sent.temperature if sent.HasField("temperature") else None,
        top_p=sent.top_p if sent.HasField("top_p") else None,
        max_tokens=sent.max_tokens if sent.HasField("max_tokens") else None,
        stop=tuple(sent.stop),
        seed=sent.seed if sent.HasField("seed") else None,
        presence_penalty=sent.presence_penalty if sent.HasField("presence_penalty") else None,
        frequency_penalty=sent.frequency_penalty if sent.HasField("frequency_penalty") else None,
    )
    return Generation(
        messages=tuple(messages),
        prompt=request.prompt if request.HasField("prompt") else None,
        model=request.model,
        sampling=sampling,
    )


def event_to_wire(event: Event) -> pb.GenerateResponse:
    """One frame of the answer."""
    match event:
        case Header(model, created):
            return pb.GenerateResponse(header=pb.GenerateHeader(model=model, created_unix_seconds=created))
        case Piece(text):
            return pb.GenerateResponse(piece=pb.GeneratePiece(text=text))
        case Finish(reason, usage, timings):
            counted = None
            if usage is not None:
                counted = pb.Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)
            spent = pb.Timings(
                total_us=timings.total_us, queue_us=timings.queue_us, first_token_us=timings.first_token_us
            )
            return pb.GenerateResponse(finish=pb.GenerateFinish(reason=_REASONS[reason], usage=counted, timings=spent))
