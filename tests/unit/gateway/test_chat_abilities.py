"""What OpenAI's chats and completions can ask beyond one text: tools, formats, choices, probabilities, images."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from gateway.testing import FakePeers
from mesh.clients.llm import ChatMessage, Role
from mesh.generation import (
    Ending,
    FinishReason,
    Image,
    Piece,
    ResponseFormat,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolChoiceMode,
    TopLogprob,
    Usage,
)

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


def events_of(answer: httpx.Response) -> list[Any]:
    """The payloads of a whole stream's events; ``[DONE]`` as itself."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_tools_and_their_results_reach_the_worker(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """What may be called, what was called and what came of it; schemas as JSON text."""
    body = {
        "messages": [
            *HELLO["messages"],
            {
                "role": "assistant",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "A cat."},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}, "strict": True},
            },
            {"type": "function", "function": {"name": "leave"}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": False,
    }
    assert (await client.post(CHAT, json=body)).status_code == 200
    asked = peers.writer.calls[-1].arguments[0]
    assert asked.messages[1:] == (
        ChatMessage(Role.ASSISTANT, tool_calls=(ToolCall("c1", "look", "{}"),)),
        ChatMessage(Role.TOOL, "A cat.", tool_call_id="c1"),
    )
    assert asked.tools == (Tool("look", "Looks.", '{"type":"object"}', strict=True), Tool("leave"))
    assert asked.tool_choice == ToolChoice(ToolChoiceMode.NAMED, "look")
    assert asked.parallel_tool_calls is False


async def test_a_tool_that_is_not_offered_is_refused(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """With a code of its own, and the names that there are."""
    tools = [{"type": "function", "function": {"name": "look"}}]
    choice = {"type": "function", "function": {"name": "leave"}}
    answer = await client.post(CHAT, json={**HELLO, "tools": tools, "tool_choice": choice})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unknown_tool", "tool_choice")
    assert "look" in error["message"]
    assert peers.writer.calls == []


CALLS = (
    Piece("Let me see. "),
    Piece(tool_calls=(ToolCallDelta(0, "c1", "look"),)),
    Piece(tool_calls=(ToolCallDelta(0, arguments='{"at":'),)),
    Piece(tool_calls=(ToolCallDelta(0, arguments="1}"), ToolCallDelta(1, "", "leave", "{}"))),
)


async def test_tool_calls_come_back_whole(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Each with an id, also where the engine gave none."""
    peers.writer.pieces, peers.writer.endings = CALLS, (Ending(FinishReason.TOOL_CALLS),)
    (choice,) = (await client.post(CHAT, json=HELLO)).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see. "
    first, second = choice["message"]["tool_calls"]
    assert first == {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}
    assert second["id"].startswith("call_")
    peers.writer.pieces = CALLS[1:]
    assert (await client.post(CHAT, json=HELLO)).json()["choices"][0]["message"]["content"] is None


async def test_tool_calls_come_back_in_deltas(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Id, type and name once, then arguments as they are written."""
    peers.writer.pieces, peers.writer.endings = CALLS, (Ending(FinishReason.TOOL_CALLS),)
    *chunks, _ = events_of(await client.post(CHAT, json={**HELLO, "stream": True}))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[2:4] == [
        {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"at":'}}]},
    ]
    assert [call["index"] for call in deltas[4]["tool_calls"]] == [0, 1]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, ResponseFormat()),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True}},
            ResponseFormat('{"type":"object"}', "a", "", strict=True),
        ),
    ],
)
async def test_the_wanted_format_reaches_the_worker(
    client: httpx.AsyncClient, peers: FakePeers, given: Any, wanted: ResponseFormat | None
) -> None:
    """Text is no wish at all."""
    assert (await client.post(CHAT, json={**HELLO, "response_format": given})).status_code == 200
    assert peers.writer.calls[-1].arguments[0].response_format == wanted


async def test_several_choices_keep_their_numbers(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Whole and streamed: each has a role, its own words and its own reason."""
    peers.writer.pieces = (Piece("b", 1), Piece("a", 0))
    peers.writer.endings = (Ending(FinishReason.STOP), Ending(FinishReason.LENGTH))
    answer = (await client.post(CHAT, json={**HELLO, "n": 2})).json()
    assert [(each["index"], each["message"]["content"], each["finish_reason"]) for each in answer["choices"]] == [
        (0, "a", "stop"),
        (1, "b", "length"),
    ]
    *chunks, _ = events_of(await client.post(CHAT, json={**HELLO, "n": 2, "stream": True}))
    said = [(chunk["choices"][0]["index"], chunk["choices"][0]["delta"]) for chunk in chunks]
    role = {"role": "assistant", "content": ""}
    assert said == [(0, role), (1, role), (1, {"content": "b"}), (0, {"content": "a"}), (0, {}), (1, {})]
    texts = (await client.post(TEXT, json={"prompt": "a", "n": 2})).json()["choices"]
    assert [(each["index"], each["text"]) for each in texts] == [(0, "a"), (1, "b")]
    assert peers.writer.calls[-1].arguments[0].sampling.n == 2


SAID = (
    TokenLogprob("é", b"\xc3\xa9", -0.5, (TopLogprob("e", b"e", -1.5),)),
    TokenLogprob("!", b"!", -0.25),
)


async def test_probabilities_of_a_chat(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Token, bytes and the likeliest others; whole and in chunks."""
    peers.writer.pieces = (Piece("é!", logprobs=SAID),)
    body = {**HELLO, "logprobs": True, "top_logprobs": 1}
    told = (await client.post(CHAT, json=body)).json()["choices"][0]["logprobs"]
    first = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
    likeliest = [{"token": "e", "logprob": -1.5, "bytes": [101]}]
    assert told["content"][0] == {**first, "top_logprobs": likeliest}
    chunks = events_of(await client.post(CHAT, json={**body, "stream": True}))
    assert chunks[1]["choices"][0]["logprobs"] == told
    assert [call.arguments[0].sampling.top_logprobs for call in peers.writer.calls] == [1, 1]
    await client.post(CHAT, json={**HELLO, "logprobs": True})
    assert peers.writer.calls[-1].arguments[0].sampling.top_logprobs == 0


async def test_probabilities_of_a_completion(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """One list per property; offsets go on from chunk to chunk."""
    peers.writer.pieces = (Piece("ab"), Piece("é!", logprobs=SAID))
    body = {"prompt": "a", "logprobs": 1, "stream": True}
    chunks = events_of(await client.post(TEXT, json=body))
    assert chunks[1]["choices"][0]["logprobs"] == {
        "tokens": ["é", "!"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"e": -1.5}, {}],
        "text_offset": [2, 3],
    }


async def test_thoughts_and_detailed_usage_are_passed_on(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Under the names that reasoning models' servers have for them; what is not known is left out, or null."""
    peers.writer.pieces, peers.writer.usage = (Piece(reasoning="hm"), Piece("So.")), Usage(5, 3, 4, 2)
    answer = (await client.post(CHAT, json=HELLO)).json()
    assert answer["choices"][0]["message"]["reasoning_content"] == "hm"
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    peers.writer.usage = None
    assert (await client.post(CHAT, json=HELLO)).json()["usage"] is None


async def test_images_are_read_and_never_fetched(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """A data URL becomes bytes; any other URL is refused, whoever asks."""

    async def ask(url: Any) -> httpx.Response:
        parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url, "detail": "low"}}]
        return await client.post(CHAT, json={"messages": [{"role": "user", "content": parts}]})

    assert (await ask("data:image/png;base64,eA==")).status_code == 200
    assert peers.writer.calls[-1].arguments[0].messages[0].parts == ("What?", Image(b"x", "image/png", "low"))
    for url in (
        "http://169.254.169.254/a.png", "file:///etc/passwd", "data:image/png,raw", "data:image/png;base64,%%",
        "data:image/svg+xml;base64,eA==", "data:image/png;base64,", 7,
    ):  # fmt: skip
        answer = await ask(url)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages[0].content[1]"), url
    assert len(peers.writer.calls) == 1
