"""How Anthropic's answers look: a message of blocks, whole and as named events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic_core import to_json

from gateway.exchange import Exchange
from gateway.streaming import StreamKind
from mesh.errors import Internal
from mesh.generation import Answer, Choice, Ending, Finish, FinishReason, Header, Piece, ToolCallDelta, Usage

_STOP_REASONS = {
    FinishReason.STOP: "end_turn",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.CONTENT_FILTER: "refusal",
    FinishReason.TOOL_CALLS: "tool_use",
}
_NO_USAGE = Usage(0, 0)


def event(payload: dict[str, Any]) -> bytes:
    """One server-sent event, named as its payload's type is: clients leave out events without a name."""
    return b"event: %s\ndata: %s\n\n" % (str(payload["type"]).encode("ascii"), to_json(payload))


ANTHROPIC_EVENTS = StreamKind("text/event-stream; charset=utf-8", event({"type": "ping"}), event)


class MessageRendering:
    """One message, whole or streamed. ``message_stop`` follows a finish alone."""

    kind = ANTHROPIC_EVENTS

    def __init__(self, exchange: Exchange) -> None:
        self._id = f"msg_{exchange.call.request_id}"
        self._usage = _NO_USAGE
        self._block = -1
        self._open = ""
        """What is open: ``text``, the number of a call, or nothing."""
        self._called: set[int] = set()
        self._arguments: list[str] = []
        """Of the call that is open."""

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer in one document.

        Raises:
            Internal: a call's arguments are no JSON object, though the answer was not cut off.
        """
        choice = answer.choices[0]
        return self._message(
            answer.model,
            content=list(self._blocks(choice)),
            usage=_usage(answer.usage or _NO_USAGE),
            **_stop(choice.ending, called=bool(choice.tool_calls)),
        )

    def _blocks(self, choice: Choice) -> Iterator[dict[str, Any]]:
        if choice.text:
            yield {"type": "text", "text": choice.text}
        for at, call in enumerate(choice.tool_calls):
            arguments = _object(call.arguments)
            if arguments is not None:
                yield {"type": "tool_use", "id": call.id or self._call_id(at), "name": call.name, "input": arguments}
            elif choice.ending.reason is not FinishReason.LENGTH:
                # One that was cut off is left out, as max_tokens tells; any other must not be carried out half.
                raise _broken_call()

    def begin(self, header: Header) -> bytes:
        """Who speaks, and what the prompt took, as far as it is known."""
        self._usage = header.usage or _NO_USAGE
        message = self._message(
            header.model, content=[], usage=_usage(self._usage), stop_reason=None, stop_sequence=None
        )
        return event({"type": "message_start", "message": message})

    def piece(self, piece: Piece) -> bytes:
        """Some text, or some of a call; a block is begun for each, and the one before it ended."""
        frames = []
        if piece.text:
            if self._open != "text":
                frames.append(self._begin_block("text", {"type": "text", "text": ""}))
            frames.append(self._delta({"type": "text_delta", "text": piece.text}))
        frames.extend(frame for call in piece.tool_calls for frame in self._call_frames(call))
        return b"".join(frames)

    def _call_frames(self, call: ToolCallDelta) -> Iterator[bytes]:
        opened = f"call {call.index}"
        if self._open != opened:
            if call.index in self._called:
                raise _broken_call()  # a block that was ended cannot go on
            self._called.add(call.index)
            block = {"type": "tool_use", "id": call.id or self._call_id(call.index), "name": call.name, "input": {}}
            yield self._begin_block(opened, block)
            self._arguments.clear()
        if call.arguments:
            self._arguments.append(call.arguments)
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def end(self, finish: Finish) -> bytes:
        """Why it ended, what it took, and that it is whole.

        Raises:
            Internal: a call's arguments are no JSON object, though the answer was not cut off.
        """
        ending = finish.endings[0]
        delta = _stop(ending, called=bool(self._called))
        usage = _usage(finish.usage or self._usage)
        del usage["cache_creation"], usage["service_tier"]
        return b"".join(
            [
                self._end_block(cut_off=ending.reason is FinishReason.LENGTH),
                event({"type": "message_delta", "delta": delta, "usage": usage}),
                event({"type": "message_stop"}),
            ]
        )

    def _begin_block(self, opened: str, block: dict[str, Any]) -> bytes:
        ended = self._end_block()
        self._block += 1
        self._open = opened
        return ended + event({"type": "content_block_start", "index": self._block, "content_block": block})

    def _end_block(self, *, cut_off: bool = False) -> bytes:
        if not self._open:
            return b""
        if self._open != "text" and not cut_off and _object("".join(self._arguments)) is None:
            raise _broken_call()
        self._open = ""
        return event({"type": "content_block_stop", "index": self._block})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return event({"type": "content_block_delta", "index": self._block, "delta": delta})

    def _message(self, model: str, **rest: Any) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": model, **rest}

    def _call_id(self, at: int) -> str:
        """For engines that give none: clients send the tool's result back by it."""
        return f"toolu_{self._id.removeprefix('msg_')}_{at}"


def _object(arguments: str) -> dict[str, Any] | None:
    """A call's arguments; none at all are an empty object. None where they are no JSON object."""
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _broken_call() -> Internal:
    return Internal(
        "The model's call of a tool is no JSON object; ask again, or offer fewer and plainer tools.",
        reason="BROKEN_TOOL_CALL",
        hop="llm",
    )


def _stop(ending: Ending, *, called: bool) -> dict[str, Any]:
    """Why it ended. Some engines say "stop" where a tool was required and called."""
    if ending.reason is FinishReason.STOP and called:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if ending.reason is FinishReason.STOP and ending.stop:
        return {"stop_reason": "stop_sequence", "stop_sequence": ending.stop}
    return {"stop_reason": _STOP_REASONS[ending.reason], "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic counts what the cache held apart from the other input. Zero where the engine did not count."""
    cached = usage.cached_prompt_tokens or 0
    return {
        "input_tokens": usage.prompt_tokens - cached,
        "output_tokens": usage.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "service_tier": "standard",
    }
