"""What is asked of a language model and what comes back, with the bounds that every request is held to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from mesh.errors import InvalidRequest

MAX_MESSAGES = 2048
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256


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
class Message:
    """One message of a chat; ``name`` is the speaker's, where a template uses it."""

    role: Role
    content: str
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen; None leaves the engine's default."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What to write: the answer to ``messages``, or the continuation of ``prompt`` as it stands; one of them.

    ``prompt_tokens`` is what `Engine.prepare` counted; 0 where nobody did.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    model: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written, as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """The engine took the request: its first event."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the text; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The text is whole: the last event. ``usage`` is None where the engine does not count."""

    reason: FinishReason
    usage: Usage | None


EngineEvent = Accepted | Piece | Ended


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in microseconds; ``first_token_us`` is from arrival to first piece, 0 without one."""

    total_us: int
    queue_us: int
    first_token_us: int


@dataclass(frozen=True, slots=True)
class Header:
    """The first event for a caller: who writes, since when."""

    model: str
    created_unix_seconds: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event for a caller. A stream without it is broken."""

    reason: FinishReason
    usage: Usage | None
    timings: Timings


Event = Header | Piece | Finish


def check(request: Generation, *, max_output_tokens: int) -> None:
    """Hold a request to its bounds. The numbers are the ones that ``llm.v1.Sampling`` states.

    Raises:
        InvalidRequest: no input, two inputs, or a number outside its bounds; ``param`` names the field.
    """
    _check_input(request)
    sampling = request.sampling
    _check_range("temperature", sampling.temperature, 0.0, 2.0)
    _check_range("top_p", sampling.top_p, 0.0, 1.0)
    if sampling.top_p == 0.0:
        raise InvalidRequest(
            "top_p must be above 0; for the likeliest token always, set temperature to 0.", param="top_p"
        )
    _check_range("presence_penalty", sampling.presence_penalty, -2.0, 2.0)
    _check_range("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)
    _check_range("max_tokens", sampling.max_tokens, 1, max_output_tokens)
    _check_stops(sampling.stop)


def _check_input(request: Generation) -> None:
    if request.prompt is not None and request.messages:
        raise InvalidRequest("Give either messages or a prompt, not both.", param="messages")
    if request.prompt is not None:
        if not request.prompt:
            raise InvalidRequest("The prompt is empty; give it some text to continue.", param="prompt")
        return
    if not request.messages:
        raise InvalidRequest("There is nothing to answer; give at least one message or a prompt.", param="messages")
    if len(request.messages) > MAX_MESSAGES:
        raise InvalidRequest(
            f"A chat holds at most {MAX_MESSAGES} messages, and this one has {len(request.messages)}.", param="messages"
        )


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    # NaN is below nothing and above nothing: only the finite test sees it.
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise InvalidRequest(f"{name} must be from {low:g} to {high:g}, and {value:g} is not.", param=name)


def _check_stops(stops: tuple[str, ...]) -> None:
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"At most {MAX_STOPS} stop strings are possible, and {len(stops)} came.", param="stop")
    if any(not 1 <= len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        raise InvalidRequest(f"A stop string has 1 to {MAX_STOP_CHARACTERS} characters.", param="stop")
