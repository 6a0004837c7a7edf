"""The OpenAI-compatible HTTP that engines speak: requests out, events in, every failure typed."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import httpx

from llm_service.generation import Accepted, Ended, EngineEvent, FinishReason, Generation, Piece, Sampling, Usage
from llm_service.sse import EventTooLong, events
from mesh.errors import Internal, InvalidRequest, MeshError, NotFound, Overloaded, Unavailable
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

CONNECT_SECONDS = 5.0
# uvicorn closes an idle connection after 5 s; a request sent into one that is just closing would fail for nothing.
KEEP_ALIVE_SECONDS = 2.0

_DONE = "[DONE]"
_REASONS = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "tool_calls": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
}
_OVERFLOW_SIGNS = ("context_length_exceeded", "maximum context length", "context window", "context length")


def http_client(
    *, stall_seconds: float, headers: Mapping[str, str] | None = None, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """A client for an engine: no proxies, no redirects, and ``stall_seconds`` as the longest silence between bytes."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(stall_seconds, connect=CONNECT_SECONDS, pool=None),
        limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_SECONDS),
        headers=dict(headers or {}),
        transport=transport,
        trust_env=False,
    )


def input_of(request: Generation) -> tuple[str, dict[str, Any]]:
    """The route below ``/v1`` and the part of the body that says what to write."""
    if request.prompt is not None:
        return "/completions", {"prompt": request.prompt}
    messages = [
        {"role": message.role.value, "content": message.content} | ({"name": message.name} if message.name else {})
        for message in request.messages
    ]
    return "/chat/completions", {"messages": messages}


def openai_sampling(sampling: Sampling) -> dict[str, Any]:
    """The sampling as OpenAI's API names it; what was not asked for is left to the engine."""
    options = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    return {name: value for name, value in options.items() if value is not None}


async def stream(client: httpx.AsyncClient, url: str, body: Mapping[str, Any]) -> AsyncGenerator[EngineEvent, None]:
    """Send a streaming request and yield Accepted, Pieces, Ended.

    Raises:
        MeshError: typed by the engine's answer. A stream that breaks off is Unavailable, never an end.
    """
    try:
        async with client.stream("POST", url, json={**body, "stream": True}) as response:
            if response.status_code != httpx.codes.OK:
                raise refusal(response.status_code, (await response.aread())[:20_000], response.headers)
            yield Accepted()
            async with aclosing(_read(response)) as written:
                async for event in written:
                    yield event
    except httpx.ConnectError:
        raise Unavailable("The engine does not answer.", reason="ENGINE_UNREACHABLE", retry_after=1.0) from None
    except httpx.ReadTimeout:
        raise Unavailable("The engine fell silent while writing.", reason="ENGINE_STUCK", retry_after=5.0) from None
    except httpx.HTTPError as error:
        log.warning("the connection to the engine broke", extra=fields(error=repr(error)))
        raise _lost("The engine was lost before its answer was whole.") from None


async def _read(response: httpx.Response) -> AsyncGenerator[EngineEvent, None]:
    reason: FinishReason | None = None
    usage: Usage | None = None
    try:
        async for data in events(response.aiter_bytes()):
            if data == _DONE:
                break
            text, ended, counted = _interpret(data)
            reason, usage = ended or reason, counted or usage
            if text:
                yield Piece(text)
    except EventTooLong:
        raise Internal("The engine sent something that is no stream of events.", reason="ENGINE_FAILED") from None
    if reason is None:
        raise _lost("The engine's answer broke off before it was whole.")
    yield Ended(reason, usage)


def _interpret(data: str) -> tuple[str, FinishReason | None, Usage | None]:
    """Text, finish reason and usage of one chunk."""
    try:
        chunk = json.loads(data)
        if "error" in chunk:
            raise _mid_stream_failure(data)
        choices = chunk.get("choices") or []
        choice = choices[0] if choices else {}
        text = (choice.get("delta") or {}).get("content") or choice.get("text") or ""
        finish = choice.get("finish_reason")
        usage = chunk.get("usage")
        return (
            str(text),
            _REASONS.get(finish, FinishReason.STOP) if finish else None,
            Usage(int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)) if usage else None,
        )
    except (ValueError, AttributeError, KeyError, TypeError):
        # Some servers put an exception's text into the event unescaped: what does not parse is a failure too.
        raise _mid_stream_failure(data) from None


def _mid_stream_failure(data: str) -> MeshError:
    log.error("the engine failed while it was writing", extra=fields(event=data[:500]))
    if any(sign in data.lower() for sign in _OVERFLOW_SIGNS):
        return context_overflow()
    return Internal("The engine failed while it was writing; the worker's log has its words.", reason="ENGINE_FAILED")


def _lost(message: str) -> Unavailable:
    return Unavailable(message, reason="ENGINE_LOST", retry_after=1.0)


def context_overflow() -> InvalidRequest:
    """The engine found that the prompt does not fit."""
    return InvalidRequest(
        "The prompt does not fit the model's context; shorten it or send fewer passages.", reason="CONTEXT_OVERFLOW"
    )


def refusal(status: int, body: bytes, headers: Mapping[str, str]) -> MeshError:
    """The typed error for an engine's HTTP status. The engine's text stays in the log: it may hold paths or prompts."""
    text = body.decode("utf-8", errors="replace")
    log.warning("the engine refused a request", extra=fields(status=status, answer=text[:500]))
    wait = _retry_after(headers)
    match status:
        case 400 | 413 | 422 if any(sign in text.lower() for sign in _OVERFLOW_SIGNS):
            return context_overflow()
        case 400 | 413 | 422:
            error: MeshError = InvalidRequest(
                "The engine finds this request invalid; the worker's log has its reason.", reason="ENGINE_REFUSED"
            )
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
        case _:
            error = Internal(
                "The engine failed on this request; the worker's log has its words.", reason="ENGINE_FAILED"
            )
    return error


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds from a Retry-After header, within reason; 1 where there is none, or a date."""
    try:
        return min(3600.0, max(0.0, float(headers.get("retry-after", "1"))))
    except ValueError:
        return 1.0
