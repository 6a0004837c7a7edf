"""How OpenAI's answers look: a chat's and a completion's, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.exchange import Exchange, unix_seconds
from gateway.generation import usage_document
from gateway.streaming import EVENTS, SSE_DONE, sse
from mesh.generation import Answer, Choice, Finish, Header, Piece, TokenLogprob, ToolCall, ToolCallDelta


class OpenAIRendering:
    """What both endpoints share: every chunk has the same id, time and model, and ``[DONE]`` follows a finish alone."""

    kind = EVENTS
    id_prefix: str
    object_name: str
    chunk_name: str

    def __init__(self, exchange: Exchange, *, choices: int = 1, usage: bool = False) -> None:
        self._id = f"{self.id_prefix}{exchange.call.request_id}"
        self._choices = choices
        self._usage = usage
        self._shared: dict[str, Any] = {}
        # With include_usage every chunk but the last says that its usage is not known yet.
        self._tail: dict[str, Any] = {"usage": None} if usage else {}

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer in one document."""
        return {
            "id": self._id,
            "object": self.object_name,
            "created": answer.created_unix_seconds or unix_seconds(),
            "model": answer.model,
            "choices": [self._choice(index, choice) for index, choice in enumerate(answer.choices)],
            "usage": usage_document(answer.usage),
        }

    def begin(self, header: Header) -> bytes:
        """What a stream opens with."""
        self._shared = {
            "id": self._id,
            "object": self.chunk_name,
            "created": header.created_unix_seconds or unix_seconds(),
            "model": header.model,
        }
        return b"".join(self._chunk(opening) for opening in self._openings())

    def piece(self, piece: Piece) -> bytes:
        """Some of one choice."""
        return self._chunk(self._part(piece))

    def end(self, finish: Finish) -> bytes:
        """Why each choice ended, the usage where it was asked for, and ``[DONE]``."""
        frames = [self._chunk(self._last(index, ending.reason.value)) for index, ending in enumerate(finish.endings)]
        if self._usage:
            frames.append(sse({**self._shared, "choices": [], "usage": usage_document(finish.usage)}))
        return b"".join([*frames, SSE_DONE])

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return sse({**self._shared, "choices": [choice], **self._tail})

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def _openings(self) -> Sequence[dict[str, Any]]:
        raise NotImplementedError

    def _part(self, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError

    def _last(self, index: int, reason: str) -> dict[str, Any]:
        raise NotImplementedError


class ChatRendering(OpenAIRendering):
    """A chat: messages, and deltas of messages."""

    id_prefix = "chatcmpl-"
    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": choice.text if choice.text or not choice.tool_calls else None,
            "refusal": None,
        }
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.tool_calls:
            message["tool_calls"] = [self._call(index, at, call) for at, call in enumerate(choice.tool_calls)]
        return {
            "index": index,
            "message": message,
            "logprobs": _logprobs(choice.logprobs),
            "finish_reason": choice.ending.reason.value,
        }

    def _call(self, choice: int, at: int, call: ToolCall) -> dict[str, Any]:
        function = {"name": call.name, "arguments": call.arguments}
        return {"id": call.id or self._call_id(choice, at), "type": "function", "function": function}

    def _openings(self) -> Sequence[dict[str, Any]]:
        """Who speaks, once for each choice, before its first word."""
        return [_delta(index, {"role": "assistant", "content": ""}) for index in range(self._choices)]

    def _part(self, piece: Piece) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        # Probabilities may come for a token that is not yet a whole character: OpenAI's chunk has content all the same.
        if piece.text or not (piece.tool_calls or piece.reasoning):
            delta["content"] = piece.text
        if piece.reasoning:
            delta["reasoning_content"] = piece.reasoning
        if piece.tool_calls:
            delta["tool_calls"] = [self._call_delta(piece.choice, call) for call in piece.tool_calls]
        return _delta(piece.choice, delta, logprobs=_logprobs(piece.logprobs))

    def _call_delta(self, choice: int, call: ToolCallDelta) -> dict[str, Any]:
        if not call.name:
            return {"index": call.index, "function": {"arguments": call.arguments}}
        return {
            "index": call.index,
            "id": call.id or self._call_id(choice, call.index),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }

    def _call_id(self, choice: int, at: int) -> str:
        """For engines that give none: clients send the tool's result back by it."""
        return f"call_{self._id.removeprefix(self.id_prefix)}_{choice}_{at}"

    def _last(self, index: int, reason: str) -> dict[str, Any]:
        return _delta(index, {}, reason=reason)


def _delta(
    index: int, delta: dict[str, Any], *, reason: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(told: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if not told:
        return None
    content = [
        {
            "token": each.token,
            "logprob": each.logprob,
            "bytes": list(each.token_bytes),
            "top_logprobs": [
                {"token": other.token, "logprob": other.logprob, "bytes": list(other.token_bytes)} for other in each.top
            ],
        }
        for each in told
    ]
    return {"content": content, "refusal": None}


class CompletionRendering(OpenAIRendering):
    """A completion: text, and pieces of text."""

    id_prefix = "cmpl-"
    object_name = "text_completion"
    chunk_name = "text_completion"

    def __init__(self, exchange: Exchange, *, choices: int = 1, usage: bool = False) -> None:
        super().__init__(exchange, choices=choices, usage=usage)
        self._written = [0] * choices

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return _text(index, choice.text, _plain_logprobs(choice.logprobs, 0), choice.ending.reason.value)

    def _openings(self) -> Sequence[dict[str, Any]]:
        """Nothing: nobody needs to be told who speaks."""
        return ()

    def _part(self, piece: Piece) -> dict[str, Any]:
        logprobs = _plain_logprobs(piece.logprobs, self._written[piece.choice])
        self._written[piece.choice] += len(piece.text)
        return _text(piece.choice, piece.text, logprobs, None)

    def _last(self, index: int, reason: str) -> dict[str, Any]:
        return _text(index, "", None, reason)


def _text(index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _plain_logprobs(told: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
    """The older shape: one list per property, and where each token begins in the text."""
    if not told:
        return None
    offsets = []
    for each in told:
        offsets.append(offset)
        offset += len(each.token)
    return {
        "tokens": [each.token for each in told],
        "token_logprobs": [each.logprob for each in told],
        "top_logprobs": [{other.token: other.logprob for other in each.top} for each in told],
        "text_offset": offsets,
    }
