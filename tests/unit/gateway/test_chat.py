"""OpenAI's chat and completions, whole and streamed, over a stand-in for the worker."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from gateway.testing import CHAT_MODEL, FakePeers
from mesh.clients.llm import ChatMessage, Role
from mesh.errors import Internal, InvalidRequest, Overloaded, Unavailable

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


def events_of(answer: httpx.Response) -> list[Any]:
    """The payloads of a stream's events; ``[DONE]`` as itself."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_a_whole_answer_has_openais_shape(client: httpx.AsyncClient) -> None:
    """Id, time, model, message, reason and usage are where the SDK reads them."""
    answer = (await client.post(CHAT, json=HELLO)).json()
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer == {
        "object": "chat.completion",
        "created": 1763600000,
        "model": CHAT_MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello!", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }


async def test_a_stream_opens_with_the_role_and_ends_with_done(client: httpx.AsyncClient) -> None:
    """Role, pieces, reason, [DONE]; one id and one time on all of them; nothing of usage unless asked."""
    answer = await client.post(CHAT, json={**HELLO, "stream": True})
    *chunks, done = events_of(answer)
    assert done == "[DONE]"
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [
        {"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}, {"content": "!"}, {},
    ]  # fmt: skip
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, None, "stop"]
    assert all("usage" not in chunk for chunk in chunks)
    assert answer.headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("position", range(4))
async def test_an_answer_that_breaks_at_any_frame_never_looks_whole(
    client: httpx.AsyncClient, peers: FakePeers, path: str, position: int
) -> None:
    """Before the first piece it is a status; after it an error event behind the exact beginning, and no [DONE]."""
    peers.writer.break_with = Unavailable("The worker went away.", hop="llm")
    peers.writer.break_after = position
    answer = await client.post(path, json={**(HELLO if path == CHAT else {"prompt": "a"}), "stream": True})
    if position == 0:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        return
    *chunks, error = events_of(answer)
    assert error["error"]["message"] == "The worker went away."
    texts = [choice.get("text") or choice.get("delta", {}).get("content", "") for (choice,) in
             (chunk["choices"] for chunk in chunks)]  # fmt: skip
    assert "".join(texts) == "".join(["Hel", "lo", "!"][:position])
    assert all(choice["finish_reason"] is None for chunk in chunks for choice in chunk["choices"])
    whole = await client.post(path, json=HELLO if path == CHAT else {"prompt": "a"})
    assert whole.status_code == 503


async def test_usage_is_a_chunk_of_its_own_when_asked_for(client: httpx.AsyncClient) -> None:
    """Every other chunk says usage null, and the last has no choices."""
    body = {**HELLO, "stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}}
    *chunks, last, done = events_of(await client.post(CHAT, json=body))
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 8


async def test_a_stream_that_breaks_never_looks_whole(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """What was written stays, an error event follows, and [DONE] does not."""
    peers.writer.break_with = Unavailable("The worker went away.", hop="llm")
    events = events_of(await client.post(CHAT, json={**HELLO, "stream": True}))
    assert events[-1]["error"]["message"] == "The worker went away."
    assert events[-1]["error"]["code"] == "unavailable"
    assert "[DONE]" not in events
    assert events[-2]["choices"][0]["delta"] == {"content": "!"}


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Overloaded("Busy.", retry_after=3), 429),
        (Unavailable("Away."), 503),
        (InvalidRequest("Too long.", reason="CONTEXT_OVERFLOW", param="messages"), 400),
        (Internal("Broken."), 500),
    ],
)
async def test_a_failure_before_the_first_word_has_its_proper_status(
    client: httpx.AsyncClient, peers: FakePeers, path: str, error: Any, status: int, *, stream: bool
) -> None:
    """Streams too: nothing was sent yet, so the status can still tell."""
    peers.writer.error = error
    body = HELLO if path == CHAT else {"prompt": "a"}
    answer = await client.post(path, json={**body, "stream": stream})
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == error.reason.lower()


async def test_an_unknown_model_is_404_whole_and_streamed(client: httpx.AsyncClient) -> None:
    """The refusal names the served ones."""
    for stream in (False, True):
        answer = await client.post(CHAT, json={**HELLO, "model": "gpt-9", "stream": stream})
        assert answer.status_code == 404
        assert CHAT_MODEL in answer.json()["error"]["message"]


async def test_sampling_reaches_the_worker(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Each number is passed on, and the newer name for the token limit wins."""
    body = {
        **HELLO, "temperature": 0, "top_p": 0.5, "max_tokens": 7, "max_completion_tokens": 9, "stop": "END", "seed": -3,
        "presence_penalty": 1, "frequency_penalty": -1.5,
    }  # fmt: skip
    assert (await client.post(CHAT, json=body)).status_code == 200
    sampling = peers.writer.calls[-1].arguments[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0, 0.5, 9)
    assert (sampling.stop, sampling.seed) == (("END",), -3)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1.5)


async def test_text_parts_are_joined_and_roles_are_known(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Parts, developer messages and names are read as OpenAI means them."""
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"},
    ]
    await client.post(CHAT, json={"messages": messages})
    assert peers.writer.calls[-1].arguments[0].messages == (
        ChatMessage(Role.SYSTEM, "Be brief."),
        ChatMessage(Role.USER, "ab", "ann"),
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools[0]", {"tools": [{"type": "custom", "custom": {"name": "f"}}]}),
        ("tool_choice", "perhaps"),
        ("tool_choice", {"type": "allowed_tools", "allowed_tools": {}}),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "grammar"}),
        ("logit_bias", {"50256": -100}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("prediction", {"type": "content"}),
        ("web_search_options", {}),
    ],
)
async def test_what_would_change_the_answer_is_refused_by_name(
    client: httpx.AsyncClient, peers: FakePeers, field: str, value: Any
) -> None:
    """An unsupported parameter is never ignored."""
    answer = await client.post(CHAT, json={**HELLO, **(value if "[" in field else {field: value})})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", field)
    assert peers.writer.calls == []


async def test_what_asks_for_nothing_is_accepted(client: httpx.AsyncClient) -> None:
    """SDKs and frameworks send defaults along."""
    body = {
        **HELLO, "n": 1, "tools": [], "tool_choice": "auto", "logprobs": False, "logit_bias": {}, "top_logprobs": 0,
        "response_format": {"type": "text"}, "modalities": ["text"], "stream": False, "stop": None, "user": "u",
        "metadata": {"a": "b"}, "service_tier": "auto", "store": False, "parallel_tool_calls": True,
        "reasoning_effort": "low", "prompt_cache_key": "k", "safety_identifier": "s", "verbosity": "low",
    }  # fmt: skip
    assert (await client.post(CHAT, json=body)).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": [7]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].tool_call_id"),
        ({**HELLO, "n": 10_000}, "n"),
        ({**HELLO, "n": 0}, "n"),
        ({**HELLO, "logprobs": 0}, "logprobs"),
        ({**HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({**HELLO, "top_logprobs": 3}, "top_logprobs"),
        ({**HELLO, "top_k": 0}, "top_k"),
        ({**HELLO, "min_p": 2}, "min_p"),
        ({**HELLO, "tool_choice": "required"}, "tool_choice"),
        ({**HELLO, "tools": [{"type": "function", "function": {"name": "look up"}}]}, "tools[0].name"),
        ({**HELLO, "response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format"),
        (
            {**HELLO, "response_format": {"type": "json_schema", "json_schema": {"name": "", "schema": {}}}},
            "response_format",
        ),
        ({"messages": [{"role": "user", "content": "a"}] * 4097}, "messages"),
        ({**HELLO, "temperature": 2.5}, "temperature"),
        ({**HELLO, "temperature": "hot"}, "temperature"),
        ({**HELLO, "top_p": 0}, "top_p"),
        ({**HELLO, "max_tokens": 0}, "max_tokens"),
        ({**HELLO, "max_tokens": 2**40}, "max_tokens"),
        ({**HELLO, "stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({**HELLO, "stop": ""}, "stop"),
        ({**HELLO, "seed": 2**70}, "seed"),
        ({**HELLO, "frequency_penalty": 3}, "frequency_penalty"),
        ({**HELLO, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({**HELLO, "guided_json": {"type": "object"}}, "guided_json"),
        ({**HELLO, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({**HELLO, "min_tokens": 5}, "min_tokens"),
        ({**HELLO, "ignore_eos": True}, "ignore_eos"),
        ({**HELLO, "chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ({**HELLO, "continue_final_message": True}, "continue_final_message"),
    ],
)
async def test_bad_input_names_the_parameter(client: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    """Every bound is checked here, as it is in the worker."""
    answer = await client.post(CHAT, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"].partition(".")[0] if param == "messages" else error["param"]) == (
        400,
        param,
    )


@pytest.mark.parametrize(
    "field",
    [
        '"temperature": NaN',
        '"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"minimum": NaN}}}',
        '"tools": [{"type": "function", "function": {"name": "a", "parameters": {"maximum": 1e999}}}]',
    ],
)
async def test_what_is_no_number_in_json_is_refused(client: httpx.AsyncClient, peers: FakePeers, field: str) -> None:
    """JSON has neither NaN nor infinity, whatever a parser lets through: no engine could be sent them."""
    content = f'{{"messages": [{{"role": "user", "content": "a"}}], {field}}}'
    answer = await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert peers.writer.calls == []


async def test_completions_continue_a_prompt(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """OpenAI's older shape, with its default of 16 tokens."""
    answer = (await client.post(TEXT, json={"prompt": ["Once"]})).json()
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "Hello!", "logprobs": None, "finish_reason": "stop"}]
    asked = peers.writer.calls[-1].arguments[0]
    assert (asked.prompt, asked.sampling.max_tokens) == ("Once", 16)


async def test_completions_stream(client: httpx.AsyncClient) -> None:
    """Pieces of text, the reason, [DONE]."""
    *chunks, done = events_of(await client.post(TEXT, json={"prompt": "Once", "stream": True}))
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello!"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "suffix": "z"}, "suffix"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "n": 10_000}, "n"),
    ],
)
async def test_completions_refuse_what_they_do_not_do(
    client: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    """By name, before the worker is asked."""
    answer = await client.post(TEXT, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in {param, "input"}
