"""What comes back from a language model, in events and as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from mesh.generation.requests import ToolCall


class FinishReason(Enum):
    """Why the text ended."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written, as the engine counted them; None where it does not tell a part of them apart."""

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went in the worker, in microseconds; ``first_token_us`` is from arrival, 0 without one."""

    total_us: int
    queue_us: int
    first_token_us: int


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One of the likeliest tokens at its place. ``token_bytes`` is UTF-8; several tokens may share a character."""

    token: str
    token_bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that was written, and the likeliest at its place, likeliest first."""

    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """Some of the call ``index`` of a choice; its first delta carries ``id`` and ``name``."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Header:
    """The first event for a caller: who writes, since when, and what the prompt takes where that is known already."""

    model: str
    created_unix_seconds: int
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of one choice; never empty."""

    text: str = ""
    choice: int = 0
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """How one choice ended: ``stop`` is the stop string that was met, where the engine tells."""

    reason: FinishReason
    stop: str = ""


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event for a caller; a stream without it is broken. ``usage`` is None where the engine does not count."""

    endings: tuple[Ending, ...]
    usage: Usage | None
    timings: Timings

    @property
    def reason(self) -> FinishReason:
        """Why the first choice ended."""
        return self.endings[0].reason


Event = Header | Piece | Finish


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole answer to the prompt."""

    text: str
    ending: Ending
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """All that was written for one request."""

    model: str
    created_unix_seconds: int
    choices: tuple[Choice, ...]
    usage: Usage | None
    timings: Timings

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text

    @property
    def reason(self) -> FinishReason:
        """Why the first choice ended."""
        return self.choices[0].ending.reason


@dataclass(slots=True)
class _Draft:
    """A choice that is being gathered."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: dict[int, list[ToolCallDelta]] = field(default_factory=dict)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.thoughts.append(piece.reasoning)
        self.logprobs.extend(piece.logprobs)
        for delta in piece.tool_calls:
            self.calls.setdefault(delta.index, []).append(delta)

    def end(self, ending: Ending) -> Choice:
        calls = tuple(_whole(self.calls[index]) for index in sorted(self.calls))
        return Choice("".join(self.texts), ending, "".join(self.thoughts), calls, tuple(self.logprobs))


def _whole(deltas: Sequence[ToolCallDelta]) -> ToolCall:
    return ToolCall(
        next((delta.id for delta in deltas if delta.id), ""),
        next((delta.name for delta in deltas if delta.name), ""),
        "".join(delta.arguments for delta in deltas),
    )


def fold(events: Iterable[Event]) -> Answer:
    """The whole answer that a stream of events amounts to.

    Raises:
        ValueError: there is no Finish.
    """
    header = Header("", 0)
    drafts: dict[int, _Draft] = {}
    for event in events:
        match event:
            case Header():
                header = event
            case Piece():
                drafts.setdefault(event.choice, _Draft()).add(event)
            case Finish():
                choices = tuple(drafts.get(at, _Draft()).end(ending) for at, ending in enumerate(event.endings))
                return Answer(header.model, header.created_unix_seconds, choices, event.usage, event.timings)
    raise ValueError("These events have no Finish.")


@dataclass(frozen=True, slots=True)
class TokenCount:
    """What a prompt takes of a context of ``context_tokens``; that is 0 where the engine does not say."""

    model: str
    prompt_tokens: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine says of itself.

    Attributes:
        running: requests in its batch; each of several answers to one prompt counts.
        waiting: requests that it has taken and cannot run yet.
        kv_used: share of its key-value cache that is in use, from 0 to 1; None where it does not say.
        kv_tokens: tokens that the cache holds in all; 0 where it does not say.
    """

    running: int
    waiting: int
    kv_used: float | None = None
    kv_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a worker is: requests at the engine and before it, the most there may be of both, the engine's words.

    Each of several answers to one prompt counts as a request.
    """

    running: int
    waiting: int
    max_running: int
    max_waiting: int
    engine: EngineLoad | None = None
