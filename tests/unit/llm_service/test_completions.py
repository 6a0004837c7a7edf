"""Whatever an engine's HTTP says or fails to say becomes events or a typed error, and never a false end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from llm_service.engines.completions import http_client, input_of, stream
from llm_service.generation import Accepted, Ended, EngineEvent, FinishReason, Generation, Message, Piece, Role, Usage
from mesh.errors import Internal, InvalidRequest, MeshError, NotFound, Overloaded, Unavailable

URL = "http://engine/v1/chat/completions"


class Body(httpx.AsyncByteStream):
    """A response body that may break."""

    def __init__(self, *steps: bytes | Exception) -> None:
        self._steps = steps

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for step in self._steps:
            if isinstance(step, Exception):
                raise step
            yield step


def event(**values: object) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(values)}\n\n".encode()


def delta(text: str) -> bytes:
    """A chunk of a chat with some text."""
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}])


def finish(reason: str = "stop", usage: dict[str, int] | None = None) -> bytes:
    """The chunk that ends a chat."""
    return event(choices=[{"index": 0, "delta": {}, "finish_reason": reason}], usage=usage)


DONE = b"data: [DONE]\n\n"


async def answer(
    *steps: bytes | Exception, status: int = 200, headers: dict[str, str] | None = None
) -> list[EngineEvent]:
    """The events that come out when the engine answers so."""
    transport = httpx.MockTransport(lambda _: httpx.Response(status, stream=Body(*steps), headers=headers))
    async with http_client(stall_seconds=1.0, transport=transport) as client:
        return [each async for each in stream(client, URL, {})]


async def test_a_whole_answer() -> None:
    """Text, finish reason and usage come through; roles and empty deltas do not become pieces."""
    role = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
    usage = event(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7})
    events = await answer(role, delta("Hel"), delta("lo"), finish(), usage, DONE)
    assert [Accepted(), Piece("Hel"), Piece("lo"), Ended(FinishReason.STOP, Usage(5, 2))] == events


async def test_an_engine_that_ends_without_done() -> None:
    """A finish reason and the stream's end are a whole answer, also without [DONE]."""
    assert await answer(delta("x"), finish("length", {"prompt_tokens": 1, "completion_tokens": 1})) == [
        Accepted(),
        Piece("x"),
        Ended(FinishReason.LENGTH, Usage(1, 1)),
    ]


async def test_usage_is_never_invented() -> None:
    """An engine that does not count leaves the usage unknown."""
    assert (await answer(delta("x"), finish(), DONE))[-1] == Ended(FinishReason.STOP, None)


async def test_plain_completions_have_their_text_elsewhere() -> None:
    """The chunks of a plain completion carry ``text``."""
    events = await answer(
        event(choices=[{"index": 0, "text": " yes"}]), event(choices=[{"text": "", "finish_reason": "stop"}])
    )
    assert Piece(" yes") in events


@pytest.mark.parametrize(
    "steps",
    [
        (),
        (delta("half"),),
        (delta("half"), DONE),
        (delta("half"), httpx.RemoteProtocolError("gone")),
        (delta("half"), httpx.ReadError("gone")),
        (delta("half"), httpx.ReadTimeout("silent")),
        (delta("half"), finish()[:-1]),
        (httpx.RemoteProtocolError("gone"),),
    ],
)
async def test_a_broken_stream_is_unavailable(steps: tuple[bytes | Exception, ...]) -> None:
    """However a stream breaks off before its finish reason, the caller hears Unavailable."""
    with pytest.raises(Unavailable):
        await answer(*steps)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'data: {"error": "CUDA out of "memory""}\n\n', Internal),
        (b'data: {"error": {"message": "boom"}}\n\n', Internal),
        (b"data: [1, 2]\n\n", Internal),
        (b'data: {"choices": [7]}\n\n', Internal),
        (b'data: {"choices": [], "usage": {"prompt_tokens": "many"}}\n\n', Internal),
        (b'data: {"error": {"code": "context_length_exceeded"}}\n\n', InvalidRequest),
    ],
)
async def test_a_failure_in_the_stream_is_typed(line: bytes, error: type[MeshError]) -> None:
    """Errors inside the stream are errors, also when they are no valid JSON, and their text stays here."""
    with pytest.raises(error) as caught:
        await answer(delta("half"), line)
    assert "CUDA" not in caught.value.message
    assert "boom" not in caught.value.message


@pytest.mark.parametrize(
    ("status", "body", "error", "reason"),
    [
        (400, b"bad", InvalidRequest, "ENGINE_REFUSED"),
        (422, b"bad", InvalidRequest, "ENGINE_REFUSED"),
        (400, b"This model's maximum context length is 4096 tokens", InvalidRequest, "CONTEXT_OVERFLOW"),
        (401, b"", Unavailable, "ENGINE_CREDENTIALS"),
        (403, b"", Unavailable, "ENGINE_CREDENTIALS"),
        (404, b"", NotFound, "ENGINE_NOT_FOUND"),
        (429, b"", Overloaded, "ENGINE_BUSY"),
        (500, b"Traceback: /secret/path", Internal, "ENGINE_FAILED"),
        (503, b"", Unavailable, "ENGINE_UNAVAILABLE"),
        (302, b"", Internal, "ENGINE_FAILED"),
    ],
)
async def test_a_refusal_is_typed(status: int, body: bytes, error: type[MeshError], reason: str) -> None:
    """Every status is a class of ours, and the engine's words stay in the log."""
    with pytest.raises(error) as caught:
        await answer(body, status=status)
    assert reason == caught.value.reason
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("-1", 0.0), ("99999", 3600.0), ("Sat, 21 Nov", 1.0)])
async def test_retry_after_is_passed_on_within_reason(header: str, seconds: float) -> None:
    """The engine's Retry-After is used where it is a sane number."""
    with pytest.raises(Overloaded) as caught:
        await answer(status=429, headers={"Retry-After": header})
    assert seconds == caught.value.retry_after


async def test_no_engine_at_all() -> None:
    """A refused connection is Unavailable."""

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    async with http_client(stall_seconds=1.0, transport=httpx.MockTransport(refuse)) as client:
        with pytest.raises(Unavailable, match="does not answer"):
            async for _ in stream(client, URL, {}):
                pass


def test_chat_and_prompt_have_their_routes() -> None:
    """Chats go to the chat route with roles and names, prompts to the plain one."""
    messages = (Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "Hi", "Ada"))
    assert input_of(Generation(messages=messages)) == (
        "/chat/completions",
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi", "name": "Ada"}]},
    )
    assert input_of(Generation(prompt="Once")) == ("/completions", {"prompt": "Once"})
