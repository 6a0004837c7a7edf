"""Whatever an engine's HTTP says or fails to say becomes events or a typed error, and never a false end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from llm_service.engines.completions import http_client, stream
from llm_service.generation import (
    Accepted,
    Ended,
    Ending,
    EngineEvent,
    FinishReason,
    Piece,
    Usage,
)
from mesh.errors import Internal, InvalidRequest, MeshError, NotFound, Overloaded, Unavailable, WrongState
from mesh.generation import (
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)

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
    *steps: bytes | Exception, status: int = 200, headers: dict[str, str] | None = None, n: int = 1
) -> list[EngineEvent]:
    """The events that come out when the engine answers so."""
    transport = httpx.MockTransport(lambda _: httpx.Response(status, stream=Body(*steps), headers=headers))
    async with http_client(stall_seconds=1.0, transport=transport) as client:
        return [each async for each in stream(client, URL, {"n": n})]


async def test_a_whole_answer() -> None:
    """Text, finish reason and usage come through; roles and empty deltas do not become pieces."""
    role = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
    usage = event(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7})
    events = await answer(role, delta("Hel"), delta("lo"), finish(), usage, DONE)
    assert [Accepted(), Piece("Hel"), Piece("lo"), Ended.one(FinishReason.STOP, Usage(5, 2))] == events


async def test_what_arrives_together_goes_on_together() -> None:
    """Only behind an engine that is ahead: each choice's text in one piece, in order, and nothing held back for it."""
    role = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
    burst = delta("b") + delta("c") + event(choices=[{"index": 1, "delta": {"content": "x"}}]) + delta("d")
    other_end = event(choices=[{"index": 1, "delta": {}, "finish_reason": "stop"}])
    events = await answer(role + delta("a"), burst, finish() + other_end + DONE, n=2)
    assert events[:-1] == [Accepted(), Piece("a"), Piece("bcd"), Piece("x", choice=1)]


async def test_joining_keeps_probabilities_calls_and_thoughts() -> None:
    """Probabilities of both tokens stand behind each other, calls stay apart, and no thought passes a text."""

    def told(token: str) -> bytes:
        entry = {"token": token, "logprob": -0.5, "top_logprobs": []}
        return event(choices=[{"index": 0, "delta": {"content": token}, "logprobs": {"content": [entry]}}])

    def called(arguments: str) -> bytes:
        return event(choices=[{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}}])

    thoughts = [event(choices=[{"delta": {"reasoning_content": each}}]) for each in ("I ", "think")]
    pieces = (await answer(b"".join([*thoughts, told("a"), told("b"), *thoughts, called("{"), called("}")]), finish()))[
        1:
    ]
    assert pieces[0] == Piece(
        "ab", reasoning="I think", logprobs=tuple(TokenLogprob(x, x.encode(), -0.5) for x in "ab")
    )
    assert pieces[1] == Piece(reasoning="I think")
    assert [piece.tool_calls[0].arguments for piece in pieces[2:-1] if isinstance(piece, Piece)] == ["{", "}"]


async def test_what_came_before_a_failure_is_told() -> None:
    """The pieces that arrived with it come first; the failure is no end."""
    client = http_client(
        stall_seconds=1.0,
        transport=httpx.MockTransport(
            lambda _: httpx.Response(200, stream=Body(delta("a") + event(error={"code": 500})))
        ),
    )
    told = []
    async with client:
        with pytest.raises(Internal):
            async for each in stream(client, URL, {}):
                told.append(each)
    assert told == [Accepted(), Piece("a")]


async def test_an_engine_that_ends_without_done() -> None:
    """A finish reason and the stream's end are a whole answer, also without [DONE]."""
    assert await answer(delta("x"), finish("length", {"prompt_tokens": 1, "completion_tokens": 1})) == [
        Accepted(),
        Piece("x"),
        Ended.one(FinishReason.LENGTH, Usage(1, 1)),
    ]


async def test_usage_is_never_invented() -> None:
    """An engine that does not count leaves the usage unknown."""
    assert (await answer(delta("x"), finish(), DONE))[-1] == Ended.one(FinishReason.STOP)


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": "many"}, {"total_tokens": 3}, {"prompt_tokens": -1}, {"prompt_tokens": 2**40}, [3]]
)
async def test_a_usage_that_cannot_be_is_none(usage: Any) -> None:
    """An answer is whole also where its engine counts badly: nothing else of it is doubted."""
    assert (await answer(delta("x"), event(choices=[], usage=usage), finish(), DONE))[-1] == Ended.one(
        FinishReason.STOP
    )


@pytest.mark.parametrize("reason", ["abort", "error", "cancelled"])
async def test_an_answer_that_the_engine_gave_up_has_no_clean_end(reason: str) -> None:
    """Engines that abort a request, as when they shut down, say so by the finish reason alone."""
    with pytest.raises(Unavailable) as caught:
        await answer(delta("half"), finish(reason), DONE)
    assert caught.value.reason == "ENGINE_LOST"


async def test_half_a_character_can_be_sent_on() -> None:
    """JSON may hold what no encoding has; it is replaced wherever it stands, and the rest arrives."""
    half = "a\ud83d"
    call = {"index": 0, "id": half, "function": {"name": half, "arguments": half}}
    told = {"token": half, "logprob": 0.5, "top_logprobs": [{"token": half, "logprob": -1}]}
    choice = {"delta": {"content": half, "reasoning": half, "tool_calls": [call]}, "logprobs": {"content": [told]}}
    plain = {"text": half, "logprobs": {"tokens": [half], "token_logprobs": [-1.0], "top_logprobs": [{half: -1.0}]}}
    _, first, second, _ = await answer(event(choices=[choice]), event(choices=[plain]), finish())
    assert first == Piece(
        "a?",
        reasoning="a?",
        tool_calls=(ToolCallDelta(0, "a?", "a?", "a?"),),
        logprobs=(TokenLogprob("a?", b"a?", 0.0, (TopLogprob("a?", b"a?", -1.0),)),),
    )
    assert second == Piece("a?", logprobs=(TokenLogprob("a?", b"a?", -1.0, (TopLogprob("a?", b"a?", -1.0),)),))


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
        (400, b"Invalid grammar: /secret", InvalidRequest, "INVALID_JSON_SCHEMA"),
        (400, b"demo is not a multimodal model", WrongState, "NO_IMAGES"),
        (400, b'"auto" tool choice requires --enable-auto-tool-choice', WrongState, "UNSUPPORTED_BY_ENGINE"),
        (501, b"", InvalidRequest, "ENGINE_REFUSED"),
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


async def test_choices_are_told_apart() -> None:
    """Pieces and endings keep the number of their choice; the end comes when every choice has one."""
    events = await answer(
        event(choices=[{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]),
        event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "END"}]),
        event(choices=[{"index": 1, "delta": {}, "finish_reason": "length", "stop_reason": 7}]),
        DONE,
        n=2,
    )
    assert events == [
        Accepted(),
        Piece("b", 1),
        Piece("a", 0),
        Ended((Ending(FinishReason.STOP, "END"), Ending(FinishReason.LENGTH)), None),
    ]


async def test_a_choice_without_an_end_is_no_answer() -> None:
    """One choice that ended does not make up for another that did not."""
    with pytest.raises(Unavailable):
        await answer(delta("a"), finish(), DONE, n=2)


async def test_a_door_that_outlives_the_engine_is_no_failed_request() -> None:
    """What vLLM says then, as an answer or in one, is that the engine is gone: others may be asked, or it again."""
    said = {"message": "EngineCore encountered an issue. See stack trace (above) for the root cause.", "code": 500}
    for told in (answer(json.dumps({"error": said}).encode(), status=500), answer(delta("a"), event(error=said))):
        with pytest.raises(Unavailable) as caught:
            await told
        assert caught.value.reason == "ENGINE_LOST"


async def test_a_choice_that_nobody_asked_for_is_a_failure() -> None:
    """An engine that counts wrong is not believed."""
    with pytest.raises(Internal):
        await answer(event(choices=[{"index": 9, "delta": {"content": "a"}}]), finish(), DONE)


async def test_tool_calls_in_pieces() -> None:
    """Id and name come first, arguments as they are written; engines that leave out the index are understood."""
    events = await answer(
        event(choices=[{"delta": {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "look"}}]}}]),
        event(choices=[{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"at":'}}]}}]),
        event(choices=[{"delta": {"tool_calls": [{"id": "c2", "function": {"name": "go", "arguments": {"x": 1}}}]}}]),
        finish("tool_calls"),
        DONE,
    )
    assert [piece.tool_calls for piece in events if isinstance(piece, Piece)] == [
        (ToolCallDelta(0, "c1", "look"),),
        (ToolCallDelta(0, arguments='{"at":'),),
        (ToolCallDelta(0, "c2", "go", '{"x": 1}'),),
    ]
    assert events[-1] == Ended.one(FinishReason.TOOL_CALLS)


async def test_thoughts_are_told_apart() -> None:
    """By either of the two names that engines have for them."""
    events = await answer(
        event(choices=[{"delta": {"reasoning_content": "hm"}}]),
        event(choices=[{"delta": {"reasoning": "so"}}]),
        finish(),
        DONE,
    )
    assert events[1:3] == [Piece(reasoning="hm"), Piece(reasoning="so")]


async def test_logprobs_of_a_chat() -> None:
    """Token, bytes and the likeliest others; minus infinity becomes what JSON can hold."""
    said = {
        "token": "é",
        "logprob": -0.5,
        "bytes": [195, 169],
        "top_logprobs": [{"token": "e", "logprob": -1e30, "bytes": None}],
    }
    (piece,) = [
        each
        for each in await answer(
            event(choices=[{"delta": {"content": "é"}, "logprobs": {"content": [said]}}]), finish(), DONE
        )
        if isinstance(each, Piece)
    ]
    assert piece.logprobs == (TokenLogprob("é", b"\xc3\xa9", -0.5, (TopLogprob("e", b"e", -9999.0),)),)


async def test_logprobs_of_a_plain_completion() -> None:
    """The older shape has one list per property, and its likeliest come in no order."""
    said = {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"x": -3.0, "a": -0.5}, None],
        "text_offset": [0, 1],
    }
    events = await answer(event(choices=[{"text": "ab", "logprobs": said}]), finish(), DONE)
    assert events[1] == Piece(
        "ab",
        logprobs=(
            TokenLogprob("a", b"a", -0.5, (TopLogprob("a", b"a", -0.5), TopLogprob("x", b"x", -3.0))),
            TokenLogprob("b", b"b", -0.25),
        ),
    )


async def test_the_prompts_usage_comes_with_the_first_chunk() -> None:
    """Where the engine tells it there, and with what its cache held."""
    usage = {"prompt_tokens": 5, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 4}}
    first = event(choices=[{"delta": {"role": "assistant"}}], usage=usage)
    assert (await answer(first, delta("x"), finish(), DONE))[0] == Accepted(Usage(5, 0, 4))


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [{"delta": {"tool_calls": [{"index": 10**12}]}}]},
        {"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [{"token": "a", "bytes": [999]}]}}]},
        {"choices": [{"delta": {"content": "a"}, "logprobs": {"tokens": ["a"], "token_logprobs": []}}]},
        {"choices": "none"},
        {"error": {"message": "boom"}},
    ],
)
async def test_nonsense_is_a_failure_and_no_end(chunk: dict[str, Any]) -> None:
    """Whatever a chunk holds, it is understood or it is a typed error."""
    with pytest.raises(Internal):
        await answer(event(**chunk), finish(), DONE)
