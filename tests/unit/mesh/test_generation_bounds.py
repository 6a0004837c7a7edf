"""Every number of a request is held to the bounds that the proto states, and every schema and tool to sense."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from mesh.errors import InvalidRequest
from mesh.generation import (
    MAX_MESSAGES,
    Generation,
    Image,
    Message,
    ResponseFormat,
    Role,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
    check,
)
from mesh.generation.bounds import MAX_SCHEMA_NODES

HELLO = Message(Role.USER, "Hello")
CHAT = Generation(messages=(HELLO,))
CALL = ToolCall("call_1", "look", "{}")
LOOK = Tool("look", parameters='{"type": "object"}')


def nested(depth: int) -> str:
    """A schema so many objects deep."""
    return '{"not": ' * (depth - 1) + "{}" + "}" * (depth - 1)


def refusal(request: Generation) -> InvalidRequest:
    """What a request is refused with."""
    with pytest.raises(InvalidRequest) as caught:
        check(request, max_output_tokens=100)
    return caught.value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.01),
        ("temperature", 2.01),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("max_tokens", 0),
        ("max_tokens", 101),
        ("max_tokens", 4_294_967_295),
        ("presence_penalty", -2.5),
        ("frequency_penalty", 2.5),
        ("frequency_penalty", -math.inf),
        ("stop", ("",)),
        ("stop", ("x" * 257,)),
        ("stop", ("a", "b", "c", "d", "e")),
        ("n", 0),
        ("n", 17),
        ("n", 10_000),
        ("top_logprobs", 21),
        ("top_k", 0),
        ("top_k", 4_294_967_295),
        ("min_p", 1.5),
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 2.5),
        ("seed", 2**63),
    ],
)
def test_a_value_outside_its_bounds_is_refused_by_name(field: str, value: Any) -> None:
    """A value outside its bounds is an InvalidRequest that names the field."""
    assert refusal(replace(CHAT, sampling=replace(Sampling(), **{field: value}))).param == field


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.0, top_p=1.0, max_tokens=1, n=1, top_logprobs=0, top_k=1, min_p=0.0),
        Sampling(temperature=2.0, top_p=0.01, max_tokens=100, stop=("x" * 256,) * 4, seed=-1),
        Sampling(
            presence_penalty=-2.0, frequency_penalty=2.0, repetition_penalty=2.0, n=16, top_logprobs=20, min_p=1.0
        ),
    ],
)
def test_the_bounds_themselves_are_allowed(sampling: Sampling) -> None:
    """The least and the greatest allowed values pass."""
    check(replace(CHAT, sampling=sampling), max_output_tokens=100)


@pytest.mark.parametrize(
    "request_",
    [
        Generation(),
        Generation(prompt=""),
        Generation(prompt="x", messages=(HELLO,)),
        Generation(messages=(HELLO,) * (MAX_MESSAGES + 1)),
        Generation(prompt="x", tools=(LOOK,)),
    ],
    ids=["nothing", "empty prompt", "both", "too many messages", "a prompt with tools"],
)
def test_exactly_one_input_is_needed(request_: Generation) -> None:
    """A request has a prompt or some messages, not both and not thousands."""
    refusal(request_)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (Message(Role.USER, "a", parts=("b",)), "messages[0]"),
        (Message(Role.USER, parts=("a",) * 257), "messages[0]"),
        (Message(Role.USER, parts=(Image(b"x", "image/svg+xml"),)), "messages[0].content"),
        (Message(Role.USER, parts=(Image(b"", "image/png"),)), "messages[0].content"),
        (Message(Role.USER, "a", tool_calls=(CALL,)), "messages[0].tool_calls"),
        (Message(Role.ASSISTANT, tool_calls=(replace(CALL, name="look up"),)), "messages[0].tool_calls"),
        (Message(Role.ASSISTANT, tool_calls=(replace(CALL, id=""),)), "messages[0].tool_calls"),
        (Message(Role.TOOL, "A cat."), "messages[0].tool_call_id"),
        (Message(Role.USER, "a", tool_call_id="call_1"), "messages[0].tool_call_id"),
        (Message(Role.USER, "a", "x" * 129), "messages[0].name"),
    ],
)
def test_a_message_that_makes_no_sense_is_refused_by_its_place(message: Message, param: str) -> None:
    """Images, calls and results have to be what they say."""
    assert refusal(Generation(messages=(message,))).param == param


@pytest.mark.parametrize(
    ("changes", "param", "reason"),
    [
        ({"tools": (Tool("look up"),)}, "tools[0].name", "INVALID_REQUEST"),
        ({"tools": (LOOK, LOOK)}, "tools", "INVALID_REQUEST"),
        ({"tools": tuple(Tool(f"t{n}") for n in range(129))}, "tools", "INVALID_REQUEST"),
        ({"tools": (Tool("a", "x" * 300_000),)}, "tools", "INVALID_REQUEST"),
        ({"tools": (Tool("a", parameters="{"),)}, "tools[0].parameters", "INVALID_JSON_SCHEMA"),
        ({"tool_choice": ToolChoice(ToolChoiceMode.REQUIRED)}, "tool_choice", "INVALID_REQUEST"),
        (
            {"tools": (LOOK,), "tool_choice": ToolChoice(ToolChoiceMode.NAMED, "leave")},
            "tool_choice",
            "UNKNOWN_TOOL",
        ),
    ],
)
def test_tools_have_to_be_callable(changes: dict[str, Any], param: str, reason: str) -> None:
    """Names, sizes and the choice among them; a tool that is not offered is named."""
    error = refusal(replace(CHAT, **changes))
    assert (error.param, error.reason) == (param, reason)


@pytest.mark.parametrize(
    "schema",
    ["", "{", "[]", "3", "null", json.dumps({"a": "x" * 300_000}), nested(70), nested(100_000)],
    ids=["empty", "cut off", "a list", "a number", "null", "too large", "too deep", "far too deep"],
)
def test_a_broken_schema_is_refused(schema: str) -> None:
    """What is no JSON object of bearable size never gets near an engine."""
    error = refusal(replace(CHAT, response_format=ResponseFormat(schema, "answer")))
    assert (error.param, error.reason) == ("response_format", "INVALID_JSON_SCHEMA")


def test_a_sound_chat_passes() -> None:
    """Tools, a choice among them, images, calls, results and a schema are fine together."""
    messages = (
        Message(Role.USER, parts=("What is this?", Image(b"x", "image/png", "high"))),
        Message(Role.ASSISTANT, tool_calls=(CALL,)),
        Message(Role.TOOL, "A cat.", tool_call_id="call_1"),
    )
    wanted = ResponseFormat(nested(60), "answer")
    choice = ToolChoice(ToolChoiceMode.NAMED, "look")
    check(Generation(messages=messages, tools=(LOOK,), tool_choice=choice, response_format=wanted))


def test_a_schema_needs_a_name() -> None:
    """Engines show it to the model."""
    assert refusal(replace(CHAT, response_format=ResponseFormat("{}", ""))).param == "response_format"


@pytest.mark.parametrize(
    "schema",
    [
        '{"minimum": NaN}',
        '{"minimum": 1e999}',
        '{"title": "\\ud800"}',
        '{"minimum": ' + "1" * 5000 + "}",
        json.dumps({"anyOf": [{}] * MAX_SCHEMA_NODES}),
    ],
    ids=["NaN", "infinity", "half a character", "a huge number", "many small parts"],
)
def test_a_schema_that_no_engine_could_be_sent_is_refused(schema: str) -> None:
    """Python reads more than JSON holds; and what is small in bytes may still take a minute to check."""
    error = refusal(replace(CHAT, response_format=ResponseFormat(schema, "answer")))
    assert error.reason == "INVALID_JSON_SCHEMA"


def test_all_tools_together_are_bounded_in_parts() -> None:
    """Many tools of which each is within the bound take as long to check as one that is not."""
    parameters = json.dumps({"anyOf": [{}] * (MAX_SCHEMA_NODES // 2)})
    tools = tuple(Tool(name, parameters=parameters) for name in ("a", "b"))
    assert refusal(replace(CHAT, tools=tools)).param == "tools"
    check(replace(CHAT, tools=tools[:1]))
