"""What engines are asked, in the words that they understand."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from llm_service.engines.completions import count_tokens, http_client, input_of, options_of
from llm_service.generation import Generation, Message, Role, Sampling
from mesh.errors import Internal, InvalidRequest, MeshError, WrongState
from mesh.generation import Image, ResponseFormat, Tool, ToolCall, ToolChoice, ToolChoiceMode


def test_chat_and_prompt_have_their_routes() -> None:
    """Chats go to the chat route with roles and names, prompts to the plain one."""
    messages = (Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "Hi", "Ada"))
    assert input_of(Generation(messages=messages)) == (
        "/chat/completions",
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi", "name": "Ada"}]},
    )
    assert input_of(Generation(prompt="Once")) == ("/completions", {"prompt": "Once"})


def test_parts_that_are_all_text_are_one_text() -> None:
    """Engines make different things of a list, down to its Python notation in the prompt; of a text they do not."""
    _, body = input_of(Generation(messages=(Message(Role.USER, parts=("One.", "Two.")),)))
    assert body["messages"] == [{"role": "user", "content": "One.\nTwo."}]


def test_all_that_a_chat_may_ask_is_said() -> None:
    """Messages, images, tools, the choice among them and the schema stand where OpenAI's clients put them."""
    messages = (
        Message(Role.USER, parts=("What is this?", Image(b"x", "image/png", "low"))),
        Message(Role.ASSISTANT, tool_calls=(ToolCall("c1", "look", "{}"),)),
        Message(Role.TOOL, "A cat.", tool_call_id="c1"),
    )
    request = Generation(
        messages=messages,
        tools=(Tool("look", "Looks.", '{"type": "object"}', strict=True), Tool("leave")),
        tool_choice=ToolChoice(ToolChoiceMode.NAMED, "look"),
        parallel_tool_calls=False,
        response_format=ResponseFormat('{"a": 1}', "answer", "An answer.", strict=True),
    )
    url = "data:image/png;base64,eA=="
    _, body = input_of(request)
    assert body == {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "A cat.", "tool_call_id": "c1"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "look", "description": "Looks.", "parameters": {"type": "object"}, "strict": True,
                },
            },
            {"type": "function", "function": {"name": "leave", "parameters": {"type": "object", "properties": {}}}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "description": "An answer.", "schema": {"a": 1}, "strict": True},
        },
    }  # fmt: skip


def test_options_are_named_as_engines_name_them() -> None:
    """What is None is left out; probabilities are asked for in two ways."""
    sampling = Sampling(temperature=0.0, stop=("END",), n=2, top_k=5, top_logprobs=3)
    assert options_of(Generation(messages=(Message(Role.USER, "a"),), sampling=sampling)) == {
        "temperature": 0.0, "stop": ["END"], "n": 2, "top_k": 5, "logprobs": True, "top_logprobs": 3,
    }  # fmt: skip
    assert options_of(Generation(prompt="a", sampling=Sampling(top_logprobs=0))) == {"logprobs": 0}
    assert options_of(Generation(prompt="a")) == {}


@pytest.mark.parametrize(
    ("status", "content", "error"),
    [
        (200, b'{"count": 12, "max_model_len": 99}', None),
        (200, b'{"tokens": [1, 2]}', WrongState),
        (404, b"", WrongState),
        (400, b"maximum context length", InvalidRequest),
        (500, b"", Internal),
    ],
)
async def test_tokens_are_counted_by_those_who_can(status: int, content: bytes, error: type[MeshError] | None) -> None:
    """The messages go to the engine's /tokenize; an engine without one says so."""
    asked: list[Any] = []

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append((str(request.url), json.loads(request.content)))
        return httpx.Response(status, content=content)

    request = Generation(messages=(Message(Role.USER, "a"),), response_format=ResponseFormat())
    async with http_client(stall_seconds=1.0, transport=httpx.MockTransport(reply)) as client:
        if error is None:
            assert await count_tokens(client, "http://engine", request, "m") == 12
        else:
            with pytest.raises(error):
                await count_tokens(client, "http://engine", request, "m")
    assert asked == [("http://engine/tokenize", {"messages": [{"role": "user", "content": "a"}], "model": "m"})]
