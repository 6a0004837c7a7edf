"""One chunk of an engine's stream, in OpenAI's shapes and what engines make of them, as events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from llm_service.generation import Ending, FinishReason, Piece, Usage
from mesh.generation import TokenLogprob, ToolCallDelta, TopLogprob

_REASONS = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
}
_BROKEN_OFF = ("abort", "error", "cancelled")
"""What engines call an answer that they gave up: it has an end, and is not whole."""
_LEAST_LOGPROB = -9999.0  # what engines write in place of minus infinity, which JSON does not have
_MOST_TOOL_CALLS = 256
_MOST_TOKENS = 2**32


class NotAChunk(Exception):
    """The engine said that it failed, or something that cannot be understood."""


class NotWhole(Exception):
    """The engine gave the answer up."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one chunk says."""

    pieces: tuple[Piece, ...]
    endings: Mapping[int, Ending]
    usage: Usage | None


def chunk_of(data: str, choices: int) -> Chunk:
    """Read one chunk of an answer with so many ``choices``.

    Raises:
        NotWhole: a choice was given up.
        NotAChunk: it holds an error, or is none. Some servers put an exception's text into an event unescaped.
    """
    try:
        said = json.loads(data)
        if said.get("error") is not None:
            raise NotAChunk
        given = said.get("choices") or []
        pieces, endings = [], {}
        for choice in given:
            number = int(choice.get("index") or 0)
            if not 0 <= number < choices:
                raise NotAChunk
            piece = _piece(choice, number)
            if piece != Piece(choice=number):
                pieces.append(piece)
            if (reason := choice.get("finish_reason")) in _BROKEN_OFF:
                raise NotWhole
            if reason:
                endings[number] = Ending(_REASONS.get(reason, FinishReason.STOP), _stop(choice))
        return Chunk(tuple(pieces), endings, _usage(said.get("usage")))
    except (ValueError, AttributeError, LookupError, TypeError, OverflowError, RecursionError):
        raise NotAChunk from None


def joined(pieces: Sequence[Piece]) -> Sequence[Piece]:
    """As few pieces that say the same: those of a choice that follow each other as one.

    A piece with tool calls stays as it is: its deltas have their own order.
    """
    if len(pieces) < 2:
        return pieces
    kept: list[Piece] = []
    latest: dict[int, int] = {}
    for piece in pieces:
        at = latest.get(piece.choice)
        before = kept[at] if at is not None else None
        # Reasoning that comes behind text must not be told before it.
        if at is None or before is None or before.tool_calls or piece.tool_calls or (before.text and piece.reasoning):
            latest[piece.choice] = len(kept)
            kept.append(piece)
        else:
            kept[at] = Piece(
                before.text + piece.text,
                piece.choice,
                before.reasoning + piece.reasoning,
                logprobs=before.logprobs + piece.logprobs,
            )
    return kept


def _piece(choice: Mapping[str, Any], number: int) -> Piece:
    delta = choice.get("delta") or {}
    return Piece(
        text=_text(delta.get("content") or delta.get("refusal") or choice.get("text")),
        choice=number,
        reasoning=_text(delta.get("reasoning_content") or delta.get("reasoning")),
        tool_calls=tuple(_calls(delta.get("tool_calls") or ())),
        logprobs=tuple(_logprobs(choice.get("logprobs"))),
    )


def _text(said: Any) -> str:
    """Text that can be sent on: JSON may hold halves of characters, which no encoding has."""
    return str(said or "").encode("utf-8", "replace").decode()


def _calls(deltas: Sequence[Mapping[str, Any]]) -> Iterator[ToolCallDelta]:
    for position, delta in enumerate(deltas):
        index = delta.get("index")
        index = position if index is None else int(index)
        if not 0 <= index < _MOST_TOOL_CALLS:
            raise NotAChunk
        function = delta.get("function") or {}
        arguments = function.get("arguments") or ""
        yield ToolCallDelta(
            index,
            _text(delta.get("id")),
            _text(function.get("name")),
            # Some engines send an object where OpenAI sends its text.
            _text(arguments if isinstance(arguments, str) else json.dumps(arguments)),
        )


def _logprobs(said: Mapping[str, Any] | None) -> Iterator[TokenLogprob]:
    if not said:
        return
    if "tokens" in said:
        yield from _plain_logprobs(said)
        return
    for entry in said.get("content") or ():
        top = tuple(TopLogprob(*_token(other)) for other in entry.get("top_logprobs") or ())
        yield TokenLogprob(*_token(entry), top)


def _token(entry: Mapping[str, Any]) -> tuple[str, bytes, float]:
    token, raw = _text(entry["token"]), entry.get("bytes")
    spelt = bytes(raw) if isinstance(raw, list) else token.encode()
    return token, spelt, _logprob(entry.get("logprob"))


def _plain_logprobs(said: Mapping[str, Any]) -> Iterator[TokenLogprob]:
    """The older shape, of plain completions: one list per property."""
    tokens, logprobs = said["tokens"], said.get("token_logprobs") or []
    tops = said.get("top_logprobs") or []
    for position, token in enumerate(tokens):
        top = (tops[position] if position < len(tops) else None) or {}
        others = sorted(
            ((_text(other), _logprob(value)) for other, value in top.items()), key=itemgetter(1), reverse=True
        )
        spelt = _text(token)
        yield TokenLogprob(
            spelt,
            spelt.encode(),
            _logprob(logprobs[position]),
            tuple(TopLogprob(other, other.encode(), value) for other, value in others),
        )


def _logprob(value: Any) -> float:
    return min(0.0, max(_LEAST_LOGPROB, float(value))) if value is not None else 0.0


def _stop(choice: Mapping[str, Any]) -> str:
    """The stop string that was met: vLLM and SGLang tell it, by names of their own."""
    met = choice.get("stop_reason") or choice.get("matched_stop")
    return _text(met) if isinstance(met, str) else ""


def _usage(said: Any) -> Usage | None:
    """The usage; None where it cannot be: an answer is whole also where its engine counts badly."""
    if not said:
        return None
    try:
        prompt = said.get("prompt_tokens_details") or {}
        completion = said.get("completion_tokens_details") or {}
        cached, thoughts = prompt.get("cached_tokens"), completion.get("reasoning_tokens")
        return Usage(
            _count(said["prompt_tokens"]),
            _count(said.get("completion_tokens") or 0),
            None if cached is None else _count(cached),
            None if thoughts is None else _count(thoughts),
        )
    except (ValueError, AttributeError, LookupError, TypeError, OverflowError):
        return None


def _count(value: Any) -> int:
    count = int(value)
    if not 0 <= count < _MOST_TOKENS:
        raise ValueError
    return count
