"""Requests to llm.v1 and answers from it, between domain and wire, as the client sees them."""

from __future__ import annotations

from typing import Any

from mesh.context import Priority
from mesh.generation import (
    Ending,
    EngineLoad,
    Event,
    Finish,
    FinishReason,
    Generation,
    Header,
    Image,
    Load,
    Message,
    Piece,
    ResponseFormat,
    Sampling,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from mesh.pb.llm.v1 import llm_pb2 as pb

_PRIORITIES = {
    None: pb.PRIORITY_UNSPECIFIED,
    Priority.INTERACTIVE: pb.PRIORITY_INTERACTIVE,
    Priority.BULK: pb.PRIORITY_BULK,
}


def chat_to_wire(request: Generation) -> pb.ChatRequest:
    """A request that has messages."""
    wire = pb.ChatRequest(
        model=request.model,
        messages=map(_message, request.messages),
        sampling=sampling_to_wire(request.sampling),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_format(request.response_format),
        priority=_PRIORITIES[request.priority],
    )
    for tool in request.tools:
        wire.tools.add(
            name=tool.name, description=tool.description, parameters_json_schema=tool.parameters, strict=tool.strict
        )
    if request.tool_choice is not None:
        wire.tool_choice.CopyFrom(
            pb.ToolChoice(mode=f"TOOL_CHOICE_MODE_{request.tool_choice.mode.name}", name=request.tool_choice.name)
        )
    return wire


def completion_to_wire(request: Generation) -> pb.CompleteRequest:
    """A request that has a prompt."""
    return pb.CompleteRequest(
        model=request.model,
        prompt=request.prompt,
        sampling=sampling_to_wire(request.sampling),
        response_format=_format(request.response_format),
        priority=_PRIORITIES[request.priority],
    )


def generation_to_wire(request: Generation) -> pb.GenerateRequest:
    """A request in the first form, which is messages or a prompt, and sampling."""
    wire = pb.GenerateRequest(model=request.model, sampling=sampling_to_wire(request.sampling))
    if request.prompt is not None:
        wire.prompt = request.prompt
    else:
        wire.chat.messages.extend(map(_message, request.messages))
    return wire


def sampling_to_wire(sampling: Sampling) -> pb.Sampling:
    """What is None stays unset."""
    return pb.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        stop=sampling.stop,
        seed=sampling.seed,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        n=sampling.n,
        top_logprobs=sampling.top_logprobs,
    )


def _message(message: Message) -> pb.Message:
    wire = pb.Message(
        role=f"ROLE_{message.role.name}",
        content=message.content,
        name=message.name,
        tool_call_id=message.tool_call_id,
    )
    for part in message.parts:
        if isinstance(part, Image):
            wire.parts.add(image=pb.Image(data=part.data, media_type=part.media_type, detail=part.detail))
        else:
            wire.parts.add(text=part)
    for call in message.tool_calls:
        wire.tool_calls.add(id=call.id, name=call.name, arguments=call.arguments)
    return wire


def _format(wanted: ResponseFormat | None) -> pb.ResponseFormat | None:
    if wanted is None:
        return None
    if wanted.schema is None:
        return pb.ResponseFormat(json_object=pb.JsonObject())
    schema = pb.JsonSchema(name=wanted.name, description=wanted.description, schema=wanted.schema, strict=wanted.strict)
    return pb.ResponseFormat(json_schema=schema)


def event_from_wire(reply: pb.ChatResponse | pb.CompleteResponse) -> Event | None:
    """One frame of an answer; None for a kind that a newer worker has, and that is not known here."""
    kind = reply.WhichOneof("frame")
    if kind == "start":
        return Header(reply.start.model, reply.start.created_unix_seconds, _usage(reply.start))
    if kind == "delta":
        return _piece(reply.delta)
    if kind == "finish":
        endings = tuple(Ending(_reason(choice.reason), choice.stop) for choice in reply.finish.choices)
        return Finish(endings or (Ending(FinishReason.STOP),), _usage(reply.finish), _timings(reply.finish.timings))
    return None


def first_form_from_wire(reply: pb.GenerateResponse) -> Event | None:
    """One frame of an answer in the first form."""
    kind = reply.WhichOneof("frame")
    if kind == "header":
        return Header(reply.header.model, reply.header.created_unix_seconds)
    if kind == "piece":
        return Piece(reply.piece.text)
    if kind == "finish":
        finish = reply.finish
        return Finish((Ending(_reason(finish.reason)),), _usage(finish), _timings(finish.timings))
    return None


def load_from_wire(reply: pb.GetLoadResponse) -> Load:
    """How busy the worker is."""
    engine = None
    if reply.HasField("engine"):
        said = reply.engine
        share = said.kv_cache_usage if said.HasField("kv_cache_usage") else None
        engine = EngineLoad(said.running_requests, said.waiting_requests, share, said.kv_cache_tokens)
    return Load(
        reply.running_requests,
        reply.waiting_requests,
        reply.max_running_requests,
        reply.max_waiting_requests,
        engine,
    )


def _piece(delta: pb.AnswerDelta) -> Piece:
    return Piece(
        delta.text,
        delta.choice,
        delta.reasoning,
        tuple(ToolCallDelta(call.index, call.id, call.name, call.arguments) for call in delta.tool_calls),
        tuple(
            TokenLogprob(
                told.token,
                told.token_bytes,
                told.logprob,
                tuple(TopLogprob(each.token, each.token_bytes, each.logprob) for each in told.top),
            )
            for told in delta.logprobs
        ),
    )


def _reason(value: int) -> FinishReason:
    name = pb.FinishReason.Name(value).removeprefix("FINISH_REASON_") if value in pb.FinishReason.values() else ""
    return FinishReason[name] if name in FinishReason.__members__ else FinishReason.STOP


def _usage(frame: Any) -> Usage | None:
    """The usage of a frame that may have one."""
    if not frame.HasField("usage"):
        return None
    usage = frame.usage
    return Usage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_prompt_tokens if usage.HasField("cached_prompt_tokens") else None,
        usage.reasoning_tokens if usage.HasField("reasoning_tokens") else None,
    )


def _timings(timings: pb.Timings) -> Timings:
    return Timings(timings.total_us, timings.queue_us, timings.first_token_us)
