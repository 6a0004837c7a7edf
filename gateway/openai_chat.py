"""OpenAI's chat requests: messages, tools and formats, read into the mesh's own words."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from pydantic_core import to_json

from gateway.bodies import VendorBody
from gateway.generation import HARMLESS, Count, GenerationBody, Harmless, unknown_part, unsupported
from gateway.images import image_of_url
from mesh.errors import InvalidRequest
from mesh.generation import (
    MAX_TOP_LOGPROBS,
    Image,
    Message,
    Part,
    ResponseFormat,
    Role,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
)


class FunctionCallBody(VendorBody):
    """What the assistant called."""

    name: str
    arguments: str = ""


class ToolCallBody(VendorBody):
    """A call that the assistant made."""

    id: str
    type: str = "function"
    function: FunctionCallBody | None = None


class ChatMessageBody(VendorBody):
    """One message; ``content`` may be a text or parts."""

    role: str
    content: Any = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCallBody], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    function_call: Any = None


class FunctionBody(VendorBody):
    """What a tool is called and takes."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(VendorBody):
    """One tool that the model may call."""

    type: str = "function"
    function: FunctionBody | None = None


class SchemaBody(VendorBody):
    """A JSON schema and its name."""

    name: str
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormatBody(VendorBody):
    """What the answer has to be."""

    type: str
    json_schema: SchemaBody | None = None


class ChatRequest(GenerationBody):
    """OpenAI's request. Unknown fields are ignored; known ones that are not supported are refused by name."""

    messages: Annotated[list[ChatMessageBody], Field(fail_fast=True)] = Field(
        description='a list of messages such as {"role": "user", "content": "Hello"}'
    )
    max_completion_tokens: Count | None = Field(None, description="a whole number from 1")
    logprobs: bool | None = Field(None, description="true or false")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        None, description=f"a whole number from 0 to {MAX_TOP_LOGPROBS}"
    )
    tools: Annotated[list[ToolBody], Field(fail_fast=True)] | None = Field(None, description="a list of functions")
    tool_choice: str | dict[str, Any] | None = Field(None, description="none, auto, required, or a function's name")
    parallel_tool_calls: bool | None = Field(None, description="true or false")
    response_format: ResponseFormatBody | None = Field(
        None, description='an object such as {"type": "json_schema", "json_schema": {…}}'
    )
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    continue_final_message: Any = None
    add_generation_prompt: Any = None


CHAT_HARMLESS: Harmless = {
    **HARMLESS,
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "continue_final_message": (None, False),
    "add_generation_prompt": (None, True),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
}

_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,  # OpenAI's newer word for the same
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
}
_TOOL_CHOICES = {mode.value: mode for mode in ToolChoiceMode if mode is not ToolChoiceMode.NAMED}


def top_logprobs_of(body: ChatRequest) -> int | None:
    """How many of the likeliest tokens are told beside each; None where no probabilities are.

    Raises:
        InvalidRequest: some are wanted, and no probabilities.
    """
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def message_of(message: ChatMessageBody, position: int) -> Message:
    """One message. Raises InvalidRequest for what is not understood; ``param`` says where."""
    where = f"messages[{position}]"
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidRequest(
            f"{where}.role is {message.role[:32]!r}; there are {', '.join(_ROLES)}.", param=f"{where}.role"
        )
    if message.function_call:
        raise unsupported(f"{where} holds a function_call; send tool_calls instead.", f"{where}.function_call")
    calls = tuple(_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(message.tool_calls or ()))
    content, parts = _content(message.content, f"{where}.content", may_be_missing=bool(calls))
    return Message(role, content, message.name or "", parts, calls, message.tool_call_id or "")


def _call(call: ToolCallBody, where: str) -> ToolCall:
    if call.type != "function" or call.function is None:
        raise unsupported(f"{where} is no call of a function, and there are no others here.", where)
    return ToolCall(call.id, call.function.name, call.function.arguments)


def _content(content: Any, where: str, *, may_be_missing: bool) -> tuple[str, tuple[Part, ...]]:
    """A message's text, or its parts where there is more than text; text parts alone are joined as they stand."""
    if isinstance(content, str):
        return content, ()
    if content is None and may_be_missing:
        return "", ()
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a text, or a list of parts.", param=where)
    parts = [_part(part, f"{where}[{position}]") for position, part in enumerate(content)]
    if any(isinstance(part, Image) for part in parts):
        return "", tuple(parts)
    return "".join(part for part in parts if isinstance(part, str)), ()


def _part(part: Any, where: str) -> Part:
    kind = part.get("type") if isinstance(part, dict) else None
    match kind:
        case "text" | "refusal":
            if isinstance(part.get(kind), str):
                return str(part[kind])
            raise InvalidRequest(f'{where} needs a text in "{kind}".', param=where)
        case "image_url":
            image = part.get("image_url")
            image = image if isinstance(image, dict) else {"url": image}
            return image_of_url(image.get("url"), image.get("detail"), where)
    raise unknown_part(kind, where, "text and image_url")


def tools_of(body: ChatRequest) -> tuple[Tool, ...]:
    """The tools that are offered. Raises InvalidRequest for one that is no function."""
    tools = []
    for position, tool in enumerate(body.tools or ()):
        function = tool.function
        if tool.type != "function" or function is None:
            raise unsupported(f"tools[{position}] is no function, and nothing else is done here.", f"tools[{position}]")
        parameters = "" if function.parameters is None else to_json(function.parameters).decode()
        tools.append(Tool(function.name, function.description or "", parameters, function.strict))
    return tuple(tools)


def tool_choice_of(given: str | dict[str, Any] | None) -> ToolChoice | None:
    """Whether a tool has to be called. Raises InvalidRequest for what is not understood."""
    if given is None:
        return None
    if isinstance(given, str):
        if given in _TOOL_CHOICES:
            return ToolChoice(_TOOL_CHOICES[given])
    elif given.get("type") == "function":
        function = given.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str):
            return ToolChoice(ToolChoiceMode.NAMED, name)
    raise unsupported(
        'tool_choice is none, auto, required, or {"type": "function", "function": {"name": …}}.', "tool_choice"
    )


def format_of(wanted: ResponseFormatBody | None) -> ResponseFormat | None:
    """What the answer has to be; None where any text will do. Raises InvalidRequest for what is not understood."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return ResponseFormat()
    schema = wanted.json_schema
    if wanted.type != "json_schema":
        raise unsupported("response_format is text, json_object or json_schema.", "response_format")
    if schema is None or schema.json_schema is None:
        raise InvalidRequest(
            'response_format needs {"json_schema": {"name": …, "schema": {…}}}.',
            param="response_format",
            reason="INVALID_JSON_SCHEMA",
        )
    text = to_json(schema.json_schema).decode()
    return ResponseFormat(text, schema.name, schema.description or "", schema.strict)
