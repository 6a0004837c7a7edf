"""The OpenAI-compatible HTTP that engines speak: requests out, events in, every failure typed."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import httpx

from llm_service.engine_http import EngineTransport
from llm_service.engines.chunks import NotAChunk, NotWhole, chunk_of, joined
from llm_service.generation import Accepted, Ended, Ending, EngineEvent, Generation, Message, Piece, Usage
from llm_service.sse import EventTooLong, events
from mesh.context import TRACEPARENT_KEY, current_call
from mesh.errors import Internal, InvalidRequest, MeshError, NotFound, Overloaded, Unavailable, WrongState
from mesh.generation import Image, ResponseFormat, Tool, ToolChoice, ToolChoiceMode
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

CONNECT_SECONDS = 5.0
COUNT_SECONDS = 10.0

_DONE = "[DONE]"
_ONE_WORD = re.compile(r"[A-Za-z0-9_.-]{1,48}")
_OVERFLOW_SIGNS = ("context_length_exceeded", "maximum context length", "context window", "context length")
_SCHEMA_SIGNS = ("json schema", "json_schema", "grammar", "structured output", "structured_output", "guided")
_IMAGE_SIGNS = ("multimodal", "multi-modal", "image input", "image_url")
_DEATH_SIGNS = ("enginecore", "enginedeaderror")
"""vLLM's door, for the moments by which it outlives what computes behind it."""
_PARSER_SIGNS = ("tool-call-parser", "tool_call_parser", "enable-auto-tool-choice", "tool parser")


def http_client(
    *, stall_seconds: float, headers: Mapping[str, str] | None = None, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """A client for an engine: ``stall_seconds`` is the longest silence between bytes; by default it reaches any URL."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(stall_seconds, connect=CONNECT_SECONDS, pool=None),
        headers=dict(headers or {}),
        transport=transport or EngineTransport(),
        trust_env=False,
    )


def input_of(request: Generation) -> tuple[str, dict[str, Any]]:
    """The route below ``/v1`` and the part of the body that says what to write."""
    body: dict[str, Any] = {}
    if request.response_format is not None:
        body["response_format"] = _format(request.response_format)
    if request.prompt is not None:
        return "/completions", {"prompt": request.prompt, **body}
    body["messages"] = [_message(message) for message in request.messages]
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        if request.tool_choice is not None:
            body["tool_choice"] = _tool_choice(request.tool_choice)
        if request.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = request.parallel_tool_calls
    return "/chat/completions", body


def options_of(request: Generation) -> dict[str, Any]:
    """The part of the body that says how to write it, by OpenAI's names and vLLM's further ones."""
    sampling = request.sampling
    options = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "n": sampling.n,
    }
    if sampling.top_logprobs is not None and request.prompt is not None:
        options["logprobs"] = sampling.top_logprobs
    elif sampling.top_logprobs is not None:
        options |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    return {name: value for name, value in options.items() if value is not None}


def _message(message: Message) -> dict[str, Any]:
    # Texts alone are one text: engines make different things of a list.
    content: Any = message.text
    if message.images:
        content = [_part(part) for part in message.parts]
    elif message.tool_calls and not content:
        content = None
    said: dict[str, Any] = {"role": message.role.value, "content": content}
    if message.name:
        said["name"] = message.name
    if message.tool_call_id:
        said["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        said["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return said


def _part(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    # The bytes themselves: no engine is ever sent to fetch something.
    url = f"data:{part.media_type};base64,{base64.b64encode(part.data).decode('ascii')}"
    return {"type": "image_url", "image_url": {"url": url, **({"detail": part.detail} if part.detail else {})}}


def _tool(tool: Tool) -> dict[str, Any]:
    parameters = json.loads(tool.parameters) if tool.parameters else {"type": "object", "properties": {}}
    function: dict[str, Any] = {"name": tool.name, "parameters": parameters}
    if tool.description:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> str | dict[str, Any]:
    if choice.mode is ToolChoiceMode.NAMED:
        return {"type": "function", "function": {"name": choice.name}}
    return str(choice.mode.value)


def _format(wanted: ResponseFormat) -> dict[str, Any]:
    if wanted.schema is None:
        return {"type": "json_object"}
    described: dict[str, Any] = {"name": wanted.name, "schema": json.loads(wanted.schema)}
    if wanted.description:
        described["description"] = wanted.description
    if wanted.strict is not None:
        described["strict"] = wanted.strict
    return {"type": "json_schema", "json_schema": described}


def _trace() -> dict[str, str]:
    """The trace that the present request belongs to, for an engine that traces too."""
    call = current_call.get()
    return {TRACEPARENT_KEY: call.traceparent} if call is not None and call.traceparent else {}


async def stream(
    client: httpx.AsyncClient, url: str, body: Mapping[str, Any], *, apart: bool = False
) -> AsyncGenerator[EngineEvent, None]:
    """Send a streaming request and yield Accepted, Pieces, Ended.

    Args:
        client: reaches the engine.
        url: of the route.
        body: what is asked, but for ``stream``.
        apart: keep pieces apart also where several have arrived together.

    Raises:
        MeshError: typed by the engine's answer. A stream that breaks off is Unavailable, never an end, and so is one
            in which a choice has no end.
    """
    try:
        async with client.stream("POST", url, json={**body, "stream": True}, headers=_trace()) as response:
            if response.status_code != httpx.codes.OK:
                raise refusal(response.status_code, (await response.aread())[:20_000], response.headers)
            answer = _Answer(int(body.get("n") or 1), apart=apart)
            async with aclosing(_read(response, answer)) as written:
                async for event in written:
                    yield event
    except httpx.ConnectError:
        raise Unavailable("The engine does not answer.", reason="ENGINE_UNREACHABLE", retry_after=1.0) from None
    except httpx.ReadTimeout:
        raise Unavailable("The engine fell silent while writing.", reason="ENGINE_STUCK", retry_after=5.0) from None
    except httpx.HTTPError as error:
        log.warning("the connection to the engine broke", extra=fields(error=repr(error)))
        raise _lost("The engine was lost before its answer was whole.") from None


class _Answer:
    """What has been read of an answer with so many choices."""

    def __init__(self, choices: int, *, apart: bool) -> None:
        self._choices = choices
        self._apart = apart
        self._endings: dict[int, Ending] = {}
        self.usage: Usage | None = None
        self.begun = False
        self.done = False
        self.failure: MeshError | None = None

    def take(self, arrived: Sequence[str]) -> Sequence[Piece]:
        """The pieces in events that arrived together, up to the end or a failure among them.

        A token that comes alone goes on alone, and at once. Only where the engine is ahead of this process do several
        come together, and then they go on together, which costs as little as one.
        """
        pieces: list[Piece] = []
        for data in arrived:
            if data == _DONE:
                self.done = True
                break
            try:
                chunk = chunk_of(data, self._choices)
            except NotAChunk:
                self.failure = _mid_stream_failure(data)
                break
            except NotWhole:
                self.failure = _lost("The engine gave the answer up before it was whole.")
                break
            self.begun = True
            self._endings.update(chunk.endings)
            self.usage = chunk.usage or self.usage
            pieces += chunk.pieces
        return pieces if self._apart else joined(pieces)

    def ended(self) -> Ended:
        """The end. Raises Unavailable where a choice has none."""
        if len(self._endings) < self._choices:
            raise _lost("The engine's answer broke off before it was whole.")
        return Ended(tuple(self._endings[number] for number in range(self._choices)), self.usage)


async def _read(response: httpx.Response, answer: _Answer) -> AsyncGenerator[EngineEvent, None]:
    accepted = False
    try:
        async for arrived in events(response.aiter_bytes()):
            pieces = answer.take(arrived)
            if answer.begun and not accepted:
                accepted = True
                yield Accepted(answer.usage)
            for piece in pieces:
                yield piece
            if answer.failure is not None:
                raise answer.failure
            if answer.done:
                break
    except EventTooLong:
        raise Internal("The engine sent something that is no stream of events.", reason="ENGINE_FAILED") from None
    yield answer.ended()


async def count_tokens(client: httpx.AsyncClient, root: str, request: Generation, model: str) -> int:
    """Tokens of the prompt, by the ``/tokenize`` that vLLM and SGLang have beside ``/v1``.

    Raises:
        WrongState: this engine has none.
        MeshError: typed by the engine's answer.
    """
    _, body = input_of(request)
    body = {name: value for name, value in body.items() if name in {"messages", "prompt", "tools"}}
    try:
        answer = await client.post(f"{root}/tokenize", json={**body, "model": model}, timeout=COUNT_SECONDS)
    except httpx.HTTPError:
        raise Unavailable("The engine does not answer.", reason="ENGINE_UNREACHABLE", retry_after=1.0) from None
    if answer.status_code in {httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED, httpx.codes.NOT_IMPLEMENTED}:
        raise cannot_count()
    if answer.status_code != httpx.codes.OK:
        raise refusal(answer.status_code, answer.content[:20_000], answer.headers)
    try:
        return int(answer.json()["count"])
    except (ValueError, KeyError, TypeError, OverflowError):
        raise cannot_count() from None


def cannot_count() -> WrongState:
    """The refusal of an engine that does not tell how long a prompt is."""
    return WrongState(
        "The engine in use cannot count a prompt's tokens; have the model served with LLM_ENGINE=vllm, which can.",
        reason="UNSUPPORTED_BY_ENGINE",
    )


def _mid_stream_failure(data: str) -> MeshError:
    log.error("the engine failed while it was writing", extra=fields(kind=_kind_of(data)))
    if any(sign in data.lower() for sign in _OVERFLOW_SIGNS):
        return context_overflow()
    if any(sign in data.lower() for sign in _DEATH_SIGNS):
        return _lost("The engine was lost before its answer was whole.")
    return Internal(
        "The engine failed while it was writing; its own lines in the worker's log may say why.", reason="ENGINE_FAILED"
    )


def _kind_of(said: str) -> str:
    """The type or code in an engine's error where that is one word, else empty: its sentences may quote a prompt."""
    try:
        error = json.loads(said)
        error = error.get("error", error)
        found = (str(error.get(name)) for name in ("type", "code") if error.get(name))
        return next((kind for kind in found if _ONE_WORD.fullmatch(kind)), "")
    except (ValueError, AttributeError, RecursionError):
        return ""


def _lost(message: str) -> Unavailable:
    return Unavailable(message, reason="ENGINE_LOST", retry_after=1.0)


def context_overflow() -> InvalidRequest:
    """The engine found that the prompt does not fit."""
    return InvalidRequest(
        "The prompt does not fit the model's context; shorten it or send fewer passages.", reason="CONTEXT_OVERFLOW"
    )


def refusal(status: int, body: bytes, headers: Mapping[str, str]) -> MeshError:
    """The typed error for an engine's HTTP status. The engine's text goes no further: it may hold paths or prompts."""
    text = body.decode("utf-8", errors="replace")
    log.warning("the engine refused a request", extra=fields(status=status, kind=_kind_of(text)))
    wait = _retry_after(headers)
    error: MeshError
    match status:
        case 400 | 413 | 422 | 501:
            error = _invalid(text.lower())
        case 401 | 403:
            error = Unavailable(
                "The engine does not accept the worker's credentials; check LLM_ENGINE_API_KEY.",
                reason="ENGINE_CREDENTIALS",
            )
        case 404:
            error = NotFound(
                "The engine does not know this model or route; check LLM_MODEL and LLM_ENGINE_URL.",
                reason="ENGINE_NOT_FOUND",
            )
        case 429:
            error = Overloaded("The engine is busy; come back later.", reason="ENGINE_BUSY", retry_after=wait)
        case 502 | 503 | 504:
            error = Unavailable("The engine is not ready.", reason="ENGINE_UNAVAILABLE", retry_after=wait)
        case _ if any(sign in text.lower() for sign in _DEATH_SIGNS):
            error = _lost("The engine was lost.")
        case _:
            error = Internal(
                "The engine failed on this request; its own lines in the worker's log may say why.",
                reason="ENGINE_FAILED",
            )
    return error


def _invalid(said: str) -> MeshError:
    """What an engine means by an invalid request, as far as its words tell."""
    if any(sign in said for sign in _OVERFLOW_SIGNS):
        return context_overflow()
    if any(sign in said for sign in _PARSER_SIGNS):
        return no_parser()
    if any(sign in said for sign in _SCHEMA_SIGNS):
        return InvalidRequest(
            "The engine cannot follow this JSON schema; use a plainer one.",
            reason="INVALID_JSON_SCHEMA",
            param="response_format",
        )
    if any(sign in said for sign in _IMAGE_SIGNS):
        return WrongState(
            "The model in use reads text alone; leave the images out, or have a model served that sees.",
            reason="NO_IMAGES",
            param="messages",
        )
    return InvalidRequest(
        "The engine finds this request invalid; the worker's log has its reason.", reason="ENGINE_REFUSED"
    )


def no_parser() -> WrongState:
    """Nobody told the engine how the model in use writes its tool calls."""
    return WrongState(
        "The engine was started without a parser for this model's tool calls; require a tool by tool_choice, or "
        "have the engine started with one.",
        reason="UNSUPPORTED_BY_ENGINE",
        param="tools",
    )


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds from a Retry-After header, within reason; 1 where there is none, or a date."""
    try:
        return min(3600.0, max(0.0, float(headers.get("retry-after", "1"))))
    except ValueError:
        return 1.0
