"""Anthropic's messages, whole, streamed and counted, over a stand-in for the worker."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from gateway.testing import CHAT_MODEL, FakePeers
from mesh.errors import Internal, InvalidRequest, Overloaded, Unavailable
from mesh.generation import (
    Ending,
    FinishReason,
    Image,
    Message,
    Piece,
    ResponseFormat,
    Role,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolChoiceMode,
    Usage,
)

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
HELLO: dict[str, Any] = {"model": CHAT_MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "Hi you"}]}
LOOK = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
CALLED = (
    Piece("Let me see."),
    Piece(tool_calls=(ToolCallDelta(0, "call_7", "look"),)),
    Piece(tool_calls=(ToolCallDelta(0, arguments='{"at": '),)),
    Piece(tool_calls=(ToolCallDelta(0, arguments="3}"), ToolCallDelta(1, "", "leave"))),
)


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The payloads of a stream's events, each of which has to be named as its type is."""
    found = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        payload = json.loads(data.removeprefix("data: "))
        assert name == f"event: {payload['type']}"
        found.append(payload)
    return found


async def test_a_whole_message_has_anthropics_shape(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Blocks, reason and usage are where the SDK reads them; what the cache held is counted apart."""
    peers.writer.usage = Usage(5, 3, 4)
    answer = (await client.post(PATH, json=HELLO)).json()
    assert answer.pop("id").startswith("msg_")
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": CHAT_MODEL,
        "content": [{"type": "text", "text": "Hello!"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 1,
            "output_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 4,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "service_tier": "standard",
        },
    }


async def test_a_stream_of_text(client: httpx.AsyncClient) -> None:
    """Start with the prompt's usage, one block, its deltas, the reason with the whole usage, and the stop."""
    answer = await client.post(PATH, json={**HELLO, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer)
    assert [event["type"] for event in events] == [
        "message_start", "content_block_start", *["content_block_delta"] * 3, "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip
    assert events[0]["message"]["usage"]["input_tokens"] == 5
    assert (events[0]["message"]["content"], events[0]["message"]["stop_reason"]) == ([], None)
    assert events[1]["content_block"] == {"type": "text", "text": ""}
    assert "".join(event["delta"]["text"] for event in events[2:5]) == "Hello!"
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert (events[-2]["usage"]["input_tokens"], events[-2]["usage"]["output_tokens"]) == (5, 3)


@pytest.mark.parametrize("position", range(4))
async def test_an_answer_that_breaks_at_any_frame_never_looks_whole(
    client: httpx.AsyncClient, peers: FakePeers, position: int
) -> None:
    """Before the first piece it is a status; after it an error event behind the exact beginning, and no stop."""
    peers.writer.break_with = Unavailable("The worker went away.", hop="llm")
    peers.writer.break_after = position
    answer = await client.post(PATH, json={**HELLO, "stream": True})
    if position == 0:
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "api_error")
        return
    *events, error = events_of(answer)
    assert error["type"] == "error"
    assert error["error"] == {"type": "api_error", "message": "The worker went away."}
    texts = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert texts == ["Hel", "lo", "!"][:position]
    assert not {"content_block_stop", "message_delta", "message_stop"} & {event["type"] for event in events}


async def test_tool_calls_come_back_whole(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Text first, then a block per call with parsed input and an id, also where the engine gave none."""
    peers.writer.pieces, peers.writer.endings = CALLED, (Ending(FinishReason.TOOL_CALLS),)
    answer = (await client.post(PATH, json={**HELLO, "tools": [LOOK]})).json()
    text, first, second = answer["content"]
    assert text["text"] == "Let me see."
    assert first == {"type": "tool_use", "id": "call_7", "name": "look", "input": {"at": 3}}
    assert (second["name"], second["input"], second["id"][:6]) == ("leave", {}, "toolu_")
    assert answer["stop_reason"] == "tool_use"


async def test_tool_calls_come_back_in_blocks(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Each call is a block of its own, begun when the one before it has ended."""
    peers.writer.pieces, peers.writer.endings = CALLED, (Ending(FinishReason.TOOL_CALLS),)
    events = events_of(await client.post(PATH, json={**HELLO, "stream": True}))
    marks = [
        (event["type"].removeprefix("content_block_"), event["index"])
        for event in events
        if event["type"].startswith("content_block_")
    ]
    assert marks == [
        ("start", 0), ("delta", 0), ("stop", 0), ("start", 1), ("delta", 1), ("delta", 1), ("stop", 1), ("start", 2),
        ("stop", 2),
    ]  # fmt: skip
    pieces = [event["delta"]["partial_json"] for event in events if "partial_json" in event.get("delta", {})]
    assert pieces == ['{"at": ', "3}"]


@pytest.mark.parametrize(
    ("ending", "pieces", "reason", "sequence"),
    [
        (Ending(FinishReason.STOP), ("a",), "end_turn", None),
        (Ending(FinishReason.STOP, "END"), ("a",), "stop_sequence", "END"),
        (Ending(FinishReason.LENGTH), ("a",), "max_tokens", None),
        (Ending(FinishReason.CONTENT_FILTER), ("a",), "refusal", None),
        (Ending(FinishReason.TOOL_CALLS), CALLED, "tool_use", None),
        (Ending(FinishReason.STOP), CALLED, "tool_use", None),
    ],
)
async def test_every_reason_has_anthropics_name(  # noqa: PLR0917 - a table's columns
    client: httpx.AsyncClient, peers: FakePeers, ending: Ending, pieces: Any, reason: str, sequence: str | None
) -> None:
    """Whole and streamed; a tool that was called is the reason, whatever the engine says."""
    peers.writer.pieces, peers.writer.endings = pieces, (ending,)
    whole = (await client.post(PATH, json=HELLO)).json()
    streamed = events_of(await client.post(PATH, json={**HELLO, "stream": True}))[-2]["delta"]
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)
    assert streamed == {"stop_reason": reason, "stop_sequence": sequence}


async def test_a_call_that_is_no_json_is_never_carried_out(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """It is a failure; cut off by max_tokens it is left out, as the reason tells."""
    peers.writer.pieces = CALLED[:3]
    peers.writer.endings = (Ending(FinishReason.TOOL_CALLS),)
    answer = await client.post(PATH, json=HELLO)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "api_error")
    peers.writer.endings = (Ending(FinishReason.LENGTH),)
    answer = await client.post(PATH, json=HELLO)
    assert [block["type"] for block in answer.json()["content"]] == ["text"]
    assert answer.json()["stop_reason"] == "max_tokens"


async def test_a_call_that_is_no_json_ends_its_stream_with_an_error(
    client: httpx.AsyncClient, peers: FakePeers
) -> None:
    """Streamed it is no better than whole; cut off by max_tokens it ends as the reason tells."""
    peers.writer.pieces = CALLED[:3]
    peers.writer.endings = (Ending(FinishReason.TOOL_CALLS),)
    kinds = [event["type"] for event in events_of(await client.post(PATH, json={**HELLO, "stream": True}))]
    assert kinds[-1] == "error"
    assert not {"message_delta", "message_stop"} & set(kinds)
    peers.writer.endings = (Ending(FinishReason.LENGTH),)
    events = events_of(await client.post(PATH, json={**HELLO, "stream": True}))
    assert (events[-1]["type"], events[-2]["delta"]["stop_reason"]) == ("message_stop", "max_tokens")


async def test_a_call_that_goes_on_after_another_one_is_an_error(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """A block that has ended cannot take it, and no other may."""
    peers.writer.pieces = (*CALLED, Piece(tool_calls=(ToolCallDelta(0, arguments="!"),)))
    events = events_of(await client.post(PATH, json={**HELLO, "stream": True}))
    assert events[-1]["type"] == "error"
    assert "message_stop" not in {event["type"] for event in events}


async def test_the_whole_request_reaches_the_worker(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """System, blocks, images, calls, results, tools and the choice among them, sampling and format."""
    body = {
        **HELLO,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "What?"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "eA=="}},
            ]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": 3}},
                {"type": "tool_use", "id": "c2", "name": "look", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "A cat."}]},
                {"type": "tool_result", "tool_use_id": "c2", "content": "It is dark.", "is_error": True},
                {"type": "text", "text": "Go on."},
            ]},
        ],
        "tools": [LOOK, {"type": "custom", "name": "leave", "input_schema": {}}],
        "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
        "temperature": 0.5, "top_p": 0.25, "top_k": 5, "stop_sequences": ["END"],
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}, "effort": "low"},
        "thinking": {"type": "disabled"}, "metadata": {"user_id": "u"}, "service_tier": "auto",
    }  # fmt: skip
    assert (await client.post(PATH, json=body)).status_code == 200
    asked = peers.writer.calls[-1].arguments[0]
    assert asked.messages == (
        Message(Role.SYSTEM, "Be brief."),
        Message(Role.USER, parts=("What?", Image(b"x", "image/png"))),
        Message(
            Role.ASSISTANT,
            "Let me see.",
            tool_calls=(ToolCall("c1", "look", '{"at":3}'), ToolCall("c2", "look", "{}")),
        ),
        Message(Role.TOOL, "A cat.", tool_call_id="c1"),
        Message(Role.TOOL, "Error: It is dark.", tool_call_id="c2"),
        Message(Role.USER, "Go on."),
    )
    assert asked.tools == (Tool("look", "Looks.", '{"type":"object"}'), Tool("leave", parameters="{}"))
    assert asked.tool_choice == ToolChoice(ToolChoiceMode.NAMED, "look")
    assert asked.parallel_tool_calls is False
    assert asked.response_format == ResponseFormat('{"type":"object"}', "answer", strict=True)
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.5, 0.25, 5, 64)
    assert sampling.stop == ("END",)


async def test_consecutive_messages_of_one_role_are_one_turn(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """As Anthropic combines them: many chat templates take no others than alternating ones."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "eA=="}}
    call = {"type": "tool_use", "id": "c1", "name": "look", "input": {}}
    messages = [
        {"role": "user", "content": "One."},
        {"role": "user", "content": "Two."},
        {"role": "assistant", "content": "Three."},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "Four."}]},
        {"role": "user", "content": "Five."},
        {"role": "user", "content": [image]},
    ]
    assert (await client.post(PATH, json={**HELLO, "messages": messages})).status_code == 200
    assert peers.writer.calls[-1].arguments[0].messages == (
        Message(Role.USER, "One.\n\nTwo."),
        Message(Role.ASSISTANT, "Three.", tool_calls=(ToolCall("c1", "look", "{}"),)),
        Message(Role.TOOL, "Four.", tool_call_id="c1"),
        Message(Role.USER, parts=("Five.", Image(b"x", "image/png"))),
    )


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("auto", ToolChoiceMode.AUTO), ("any", ToolChoiceMode.REQUIRED), ("none", ToolChoiceMode.NONE)],
)
async def test_every_tool_choice_is_known(
    client: httpx.AsyncClient, peers: FakePeers, kind: str, mode: ToolChoiceMode
) -> None:
    """By Anthropic's names; parallel calls are the engine's to decide unless something is said."""
    assert (await client.post(PATH, json={**HELLO, "tools": [LOOK], "tool_choice": {"type": kind}})).status_code == 200
    asked = peers.writer.calls[-1].arguments[0]
    assert (asked.tool_choice, asked.parallel_tool_calls) == (ToolChoice(mode), None)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": "http://169.254.169.254/"}}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "a"}]}]}, "tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]}, "messages.0.content.0"),
        ({"system": [{"type": "image"}]}, "system.0"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"stop_sequences": ["a"] * 5}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0"),
        ({"tools": [{"name": "look up", "input_schema": {}}]}, "tools[0].name"),
        ({"tool_choice": {"type": "perhaps"}}, "tool_choice"),
        ({"tool_choice": {"type": ["any"]}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [LOOK], "tool_choice": {"type": "tool", "name": "leave"}}, "leave"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "thinking"),
        ({"thinking": {"type": ["enabled"]}}, "thinking"),
        ({"messages": [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "look", "input": "x"}]},
            {"role": "user", "content": "Hi"}]}, "messages.0.content.0"),
        ({"messages": [*HELLO["messages"], {"role": "assistant", "content": "It is"}]}, "messages.1"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config"),
        ({"container": "c"}, "container"),
        ({"compaction": {"type": "auto"}}, "compaction"),
        ({"thread": {"id": "t"}}, "thread"),
        ({"mcp_servers": [{"url": "http://a"}]}, "mcp_servers"),
    ],
)  # fmt: skip
async def test_what_is_wrong_or_not_done_is_named(
    client: httpx.AsyncClient, peers: FakePeers, changes: dict[str, Any], word: str
) -> None:
    """Nothing that would change the answer is ignored, and nothing of it reaches the worker."""
    body = {name: value for name, value in {**HELLO, **changes}.items() if value is not None}
    answer = await client.post(PATH, json=body)
    problem = answer.json()
    assert (answer.status_code, problem["type"], problem["error"]["type"]) == (400, "error", "invalid_request_error")
    assert word in problem["error"]["message"]
    assert peers.writer.calls == []


async def test_tokens_are_counted_with_tools_and_system(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Nothing has to be said of max_tokens, and nothing is written."""
    body = {"model": CHAT_MODEL, "messages": HELLO["messages"], "system": "Be brief.", "tools": [LOOK]}
    assert (await client.post(COUNT, json=body)).json() == {"input_tokens": 14}
    assert not peers.writer.closed.is_set()


async def test_what_ends_with_the_assistant_can_be_counted(client: httpx.AsyncClient) -> None:
    """Whoever counts asks for no continuation."""
    messages = [*HELLO["messages"], {"role": "assistant", "content": "It is"}]
    answer = await client.post(COUNT, json={"model": CHAT_MODEL, "messages": messages})
    assert answer.json() == {"input_tokens": 4}


@pytest.mark.parametrize("path", ["/v1/messages/batches", "/v1/messages/"])
async def test_what_is_not_here_is_told_in_anthropics_shape(client: httpx.AsyncClient, path: str) -> None:
    """All below /v1/messages was meant for Anthropic."""
    answer = await client.post(path, json={})
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


@pytest.mark.parametrize("path", [PATH, COUNT])
async def test_an_unknown_model_is_404(client: httpx.AsyncClient, path: str) -> None:
    """With the names that there are."""
    answer = await client.post(path, json={**HELLO, "model": "claude-9"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
    assert CHAT_MODEL in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (Overloaded("Busy.", retry_after=3), 529, "overloaded_error"),
        (Unavailable("Away."), 503, "api_error"),
        (InvalidRequest("Too long.", reason="CONTEXT_OVERFLOW"), 400, "invalid_request_error"),
        (Internal("Broken."), 500, "api_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_word_has_its_proper_status(
    client: httpx.AsyncClient, peers: FakePeers, error: Any, status: int, kind: str, *, stream: bool
) -> None:
    """As Anthropic's own, and with when to come back."""
    peers.writer.error = error
    answer = await client.post(PATH, json={**HELLO, "stream": stream})
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert answer.json()["request_id"]
    assert answer.headers["x-should-retry"] == ("true" if status == 529 else "false")
