"""What a request may ask at most. Gateway and worker call the same `check`, so neither is the laxer door."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from mesh.errors import InvalidRequest
from mesh.generation.requests import Generation, Message, ResponseFormat, Role, Sampling, ToolChoiceMode

MAX_MESSAGES = 4096
MAX_PARTS = 256
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_TOP_K = 1_000_000
MAX_TOOLS = 128
MAX_TOOL_CALLS = 128
MAX_NAME_CHARACTERS = 128
MAX_SCHEMA_BYTES = 256 * 1024
MAX_SCHEMA_DEPTH = 64
MAX_SCHEMA_NODES = 4096
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")

_SEED = 2**63
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_SCHEMA_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CALL_ID = re.compile(r"[!-~]{1,256}")
_DETAILS = ("", "auto", "low", "high")


def check(request: Generation, *, max_output_tokens: int | None = None) -> None:
    """Hold a request to its bounds. The numbers are the ones that ``llm.v1`` states.

    Args:
        request: what is asked.
        max_output_tokens: the worker's own limit; None where it is not known.

    Raises:
        InvalidRequest: no input, two inputs, a number outside its bounds, a tool that is not offered, or a schema that
            is no JSON object; ``param`` names the field.
    """
    check_input(request)
    _check_sampling(request.sampling, max_output_tokens)
    if request.response_format is not None:
        _check_format(request.response_format)


def check_input(request: Generation) -> None:
    """The part of `check` that holds for what is only counted: prompt, messages and tools. Raises InvalidRequest."""
    if request.prompt is not None:
        _check_prompt(request)
        return
    if not request.messages:
        raise InvalidRequest("There is nothing to answer; give at least one message or a prompt.", param="messages")
    if len(request.messages) > MAX_MESSAGES:
        raise InvalidRequest(
            f"A chat holds at most {MAX_MESSAGES} messages, and this one has {len(request.messages)}.", param="messages"
        )
    for index, message in enumerate(request.messages):
        _check_message(message, f"messages[{index}]")
    _check_tools(request)
    _check_tool_choice(request)


def _check_prompt(request: Generation) -> None:
    if request.messages:
        raise InvalidRequest("Give either messages or a prompt, not both.", param="messages")
    if not request.prompt:
        raise InvalidRequest("The prompt is empty; give it some text to continue.", param="prompt")
    if request.tools or request.tool_choice is not None:
        raise InvalidRequest("A prompt is continued without tools; send a chat to offer some.", param="tools")


def _check_message(message: Message, where: str) -> None:
    if message.parts and message.content:
        raise InvalidRequest(f"{where} has content and parts; give one of them.", param=where)
    if len(message.parts) > MAX_PARTS or len(message.tool_calls) > MAX_TOOL_CALLS:
        raise InvalidRequest(
            f"{where} has more than {MAX_PARTS} parts or {MAX_TOOL_CALLS} tool calls; send less.", param=where
        )
    if len(message.name) > MAX_NAME_CHARACTERS:
        raise InvalidRequest(f"A name has at most {MAX_NAME_CHARACTERS} characters.", param=f"{where}.name")
    for image in message.images:
        if image.media_type not in IMAGE_TYPES or not image.data or image.detail not in _DETAILS:
            raise InvalidRequest(
                f"{where} holds an image that is empty or none of {', '.join(IMAGE_TYPES)}.", param=f"{where}.content"
            )
    if message.tool_calls and message.role is not Role.ASSISTANT:
        raise InvalidRequest(f"Only the assistant calls tools; {where} does as well.", param=f"{where}.tool_calls")
    for call in message.tool_calls:
        if not _TOOL_NAME.fullmatch(call.name) or not _CALL_ID.fullmatch(call.id):
            raise InvalidRequest(
                f"A tool call in {where} has no proper id or name; send back what the answer held.",
                param=f"{where}.tool_calls",
            )
    if message.tool_call_id and message.role is not Role.TOOL:
        raise InvalidRequest(f"Only a tool's result names a call; {where} is none.", param=f"{where}.tool_call_id")
    if message.role is Role.TOOL and not _CALL_ID.fullmatch(message.tool_call_id):
        raise InvalidRequest(
            f"{where} is a tool's result, and does not say of which call.", param=f"{where}.tool_call_id"
        )


def _check_tools(request: Generation) -> None:
    if len(request.tools) > MAX_TOOLS:
        raise InvalidRequest(f"At most {MAX_TOOLS} tools can be offered, not {len(request.tools)}.", param="tools")
    if sum(len(tool.parameters) + len(tool.description) for tool in request.tools) > MAX_SCHEMA_BYTES:
        raise InvalidRequest(
            f"The tools take more than {MAX_SCHEMA_BYTES} bytes; describe them shorter.", param="tools"
        )
    seen = set()
    nodes = 0
    for index, tool in enumerate(request.tools):
        if not _TOOL_NAME.fullmatch(tool.name):
            raise InvalidRequest(
                f"tools[{index}] needs a name of 1 to 128 letters, digits, _ and -.", param=f"tools[{index}].name"
            )
        if tool.name in seen:
            raise InvalidRequest(f"Two tools are called {tool.name}; give each its own name.", param="tools")
        seen.add(tool.name)
        if tool.parameters:
            nodes += _check_schema(tool.parameters, f"tools[{index}].parameters")
    if nodes > MAX_SCHEMA_NODES:
        raise InvalidRequest(
            f"The tools' schemas are made of more than {MAX_SCHEMA_NODES} objects and lists; offer fewer tools.",
            param="tools",
        )


def _check_tool_choice(request: Generation) -> None:
    choice = request.tool_choice
    if choice is None or choice.mode in {ToolChoiceMode.NONE, ToolChoiceMode.AUTO}:
        return
    names = [tool.name for tool in request.tools]
    if not names:
        raise InvalidRequest("A tool has to be called, and none is offered; give some in tools.", param="tool_choice")
    if choice.mode is ToolChoiceMode.NAMED and choice.name not in names:
        raise InvalidRequest(
            f"There is no tool {choice.name[:128]!r} to call; offered are {', '.join(names[:20])}.",
            param="tool_choice",
            reason="UNKNOWN_TOOL",
        )


def _check_sampling(sampling: Sampling, max_output_tokens: int | None) -> None:
    _check_range("temperature", sampling.temperature, 0.0, 2.0)
    _check_range("top_p", sampling.top_p, 0.0, 1.0)
    if sampling.top_p == 0.0:
        raise InvalidRequest(
            "top_p must be above 0; for the likeliest token always, set temperature to 0.", param="top_p"
        )
    _check_range("presence_penalty", sampling.presence_penalty, -2.0, 2.0)
    _check_range("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)
    _check_range("repetition_penalty", sampling.repetition_penalty, 0.0, 2.0)
    if sampling.repetition_penalty == 0.0:
        raise InvalidRequest("repetition_penalty must be above 0; 1 changes nothing.", param="repetition_penalty")
    _check_range("min_p", sampling.min_p, 0.0, 1.0)
    _check_range("top_k", sampling.top_k, 1, MAX_TOP_K)
    _check_range("n", sampling.n, 1, MAX_CHOICES)
    _check_range("top_logprobs", sampling.top_logprobs, 0, MAX_TOP_LOGPROBS)
    _check_range("seed", sampling.seed, -_SEED, _SEED - 1)
    _check_range("max_tokens", sampling.max_tokens, 1, max_output_tokens or 2**31 - 1)
    _check_stops(sampling.stop)


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    # NaN is below nothing and above nothing: only the finite test sees it.
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise InvalidRequest(f"{name} must be from {low:g} to {high:g}, and {value:g} is not.", param=name)


def _check_stops(stops: tuple[str, ...]) -> None:
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"At most {MAX_STOPS} stop strings are possible, and {len(stops)} came.", param="stop")
    if any(not 1 <= len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        raise InvalidRequest(f"A stop string has 1 to {MAX_STOP_CHARACTERS} characters.", param="stop")


def _check_format(wanted: ResponseFormat) -> None:
    if wanted.schema is None:
        return
    if not _SCHEMA_NAME.fullmatch(wanted.name):
        raise InvalidRequest(
            "The schema of response_format needs a name of 1 to 64 letters, digits, _ and -.", param="response_format"
        )
    _check_schema(wanted.schema, "response_format")


def _check_schema(text: str, param: str) -> int:
    """A JSON object of bearable size; of how many objects and lists.

    Whether it is a good schema is for the worker to find out, off its event loop.
    """
    if len(text) > MAX_SCHEMA_BYTES:
        raise broken_schema(f"it has more than {MAX_SCHEMA_BYTES} bytes", param)
    try:
        schema = json.loads(text)
    except ValueError:
        raise broken_schema("it is not JSON", param) from None
    except RecursionError:
        raise broken_schema("it is nested too deeply", param) from None
    if not isinstance(schema, dict):
        raise broken_schema("it is no JSON object", param)
    nodes = _nodes(schema, param)
    try:
        # What Python reads is more than JSON: NaN, numbers beyond all bounds, halves of characters.
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise broken_schema("it holds a number or a character that JSON does not have", param) from None
    return nodes


def _nodes(schema: dict[str, Any], param: str) -> int:
    """Of how many objects and lists it is made, within bounds: each costs whoever checks it half a millisecond."""
    nodes = 0
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH + 1):
        level = [value for value in level if isinstance(value, dict | list)]
        nodes += len(level)
        if nodes > MAX_SCHEMA_NODES:
            raise broken_schema(f"it is made of more than {MAX_SCHEMA_NODES} objects and lists", param)
        if not level:
            return nodes
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
    raise broken_schema(f"it is nested more than {MAX_SCHEMA_DEPTH} deep", param)


def broken_schema(why: str, param: str) -> InvalidRequest:
    """The refusal of a JSON schema."""
    return InvalidRequest(
        f"{param} holds no usable JSON schema: {why}. Send a JSON object such as "
        '{"type": "object", "properties": {…}}.',
        param=param,
        reason="INVALID_JSON_SCHEMA",
    )
