"""Anthropic's message requests: blocks, tools and the system prompt, read into the mesh's own words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field
from pydantic_core import to_json

from gateway.bodies import ModelName, Texts, VendorBody
from gateway.generation import Count, Harmless, Share, unknown_part, unsupported
from gateway.images import image_of_base64
from mesh.errors import InvalidRequest
from mesh.generation import (
    Image,
    Message,
    Part,
    ResponseFormat,
    Role,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
)
from mesh.generation.bounds import MAX_STOP_CHARACTERS, MAX_STOPS, MAX_TOP_K

Block = Mapping[str, Any]


class MessageBody(VendorBody):
    """One message; ``content`` may be a text or blocks."""

    role: str
    content: str | list[dict[str, Any]]


class ToolBody(VendorBody):
    """One tool that the model may call; ``type`` says which, where it is one of Anthropic's own."""

    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class FormatBody(VendorBody):
    """What the answer has to be."""

    type: str
    json_schema: dict[str, Any] | None = Field(None, alias="schema")


class OutputBody(VendorBody):
    """How the answer is written; how hard the model tries (``effort``) is not ours to set."""

    format: FormatBody | None = None


class CountRequest(VendorBody):
    """Anthropic's request to count. Unknown fields are ignored, ``cache_control`` too: caching is the engine's own."""

    model: ModelName = Field(description="a served model or an alias")
    messages: Annotated[list[MessageBody], Field(fail_fast=True)] = Field(
        description='a list of messages such as {"role": "user", "content": "Hello"}'
    )
    system: str | list[dict[str, Any]] | None = Field(None, description="a text, or a list of text blocks")
    tools: Annotated[list[ToolBody], Field(fail_fast=True)] | None = Field(None, description="a list of tools")
    tool_choice: dict[str, Any] | None = Field(None, description='an object such as {"type": "auto"}')
    thinking: dict[str, Any] | None = Field(None, description='an object such as {"type": "disabled"}')
    output_config: OutputBody | None = None
    container: Any = None
    mcp_servers: Any = None
    context_management: Any = None
    compaction: Any = None
    thread: Any = None


class MessagesRequest(CountRequest):
    """Anthropic's request. Unknown fields are ignored; known ones that are not supported are refused by name."""

    max_tokens: Count = Field(description="a whole number from 1")
    stop_sequences: Texts | None = Field(None, description=f"a list of at most {MAX_STOPS} texts")
    stream: bool | None = Field(None, description="true or false")
    temperature: Share | None = Field(None, description="a number from 0 to 1")
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="a number above 0, up to 1"
    )
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] | None = Field(None, description="a whole number from 1")


HARMLESS: Harmless = {
    "container": (None,),
    "mcp_servers": (None, []),
    "context_management": (None, {}),
    "compaction": (None,),
    "thread": (None,),
}

_TOOL_CHOICES = {"auto": ToolChoiceMode.AUTO, "any": ToolChoiceMode.REQUIRED, "none": ToolChoiceMode.NONE}


def refuse_thinking(body: CountRequest) -> None:
    """Refuse a budget for thoughts: engines have none. That the model may think where it can asks for nothing.

    Raises:
        InvalidRequest: with the reason UNSUPPORTED_PARAMETER.
    """
    if body.thinking and body.thinking.get("type") not in ("disabled", "adaptive"):
        raise unsupported("A budget for thinking is not supported here; leave thinking out.", "thinking")


def sampling_of(body: MessagesRequest) -> Sampling:
    """The request's sampling. Raises InvalidRequest for stop sequences that are too many, empty or too long."""
    stops = tuple(body.stop_sequences or ())
    if len(stops) > MAX_STOPS or not all(1 <= len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        raise InvalidRequest(
            f"stop_sequences takes at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters each.",
            param="stop_sequences",
        )
    return Sampling(
        temperature=body.temperature, top_p=body.top_p, top_k=body.top_k, max_tokens=body.max_tokens, stop=stops
    )


def refuse_prefill(body: CountRequest) -> None:
    """Refuse a last message of the assistant's: it asks for that message's continuation, and chats answer anew.

    Raises:
        InvalidRequest: with the reason UNSUPPORTED_PARAMETER.
    """
    if body.messages[-1].role == "assistant":
        raise unsupported(
            "The last message is the assistant's, and an answer cannot be begun for the model here; end with a user's "
            "message, or ask for a shape with output_config.format.",
            f"messages.{len(body.messages) - 1}",
        )


def messages_of(body: CountRequest) -> tuple[Message, ...]:
    """All messages, the system prompt first. Raises InvalidRequest for what is not understood; ``param`` says where."""
    found: list[Message] = []
    if body.system:
        found.append(Message(Role.SYSTEM, _text(body.system, "system")))
    for position, message in enumerate(body.messages):
        for each in _messages(message, f"messages.{position}"):
            if found and found[-1].role is each.role and each.role in _TURNS:
                found[-1] = _one_turn(found[-1], each)
            else:
                found.append(each)
    return tuple(found)


# Consecutive ones are one turn, as Anthropic says; many a chat template takes no others than alternating ones.
_TURNS = frozenset({Role.USER, Role.ASSISTANT})


def _one_turn(first: Message, second: Message) -> Message:
    if first.parts or second.parts:
        parts = (*(first.parts or (first.content,)), *(second.parts or (second.content,)))
        return Message(first.role, parts=parts)
    content = "\n\n".join(filter(None, (first.content, second.content)))
    return Message(first.role, content, tool_calls=first.tool_calls + second.tool_calls)


def _messages(message: MessageBody, where: str) -> Iterator[Message]:
    match message.role:
        case "user":
            yield from _of_user(message.content, f"{where}.content")
        case "assistant":
            yield _of_assistant(message.content, f"{where}.content")
        case "system":
            yield Message(Role.SYSTEM, _text(message.content, f"{where}.content"))
        case _:
            raise InvalidRequest(
                f"{where}.role is {message.role[:32]!r}; there are user, assistant and system.", param=f"{where}.role"
            )


def _text(content: str | list[dict[str, Any]], where: str) -> str:
    """The text of blocks that may be nothing else."""
    if isinstance(content, str):
        return content
    return "".join(_text_of(block, f"{where}.{at}") for at, block in enumerate(content))


def _text_of(block: Block, where: str) -> str:
    if block.get("type") != "text" or not isinstance(block.get("text"), str):
        raise unsupported(f"{where} is no text block, and nothing else is understood there.", where)
    return str(block["text"])


def _of_user(content: str | list[dict[str, Any]], where: str) -> Iterator[Message]:
    """The tools' results first, each a message of its own, then what the user says."""
    if isinstance(content, str):
        yield Message(Role.USER, content)
        return
    said: list[Part] = []
    for at, block in enumerate(content):
        if block.get("type") == "tool_result":
            yield _result(block, f"{where}.{at}")
        else:
            said.append(_part(block, f"{where}.{at}"))
    if said or not content:
        yield _message(Role.USER, said)


def _message(role: Role, parts: list[Part], tool_call_id: str = "") -> Message:
    """Text parts alone are joined as they stand."""
    if any(isinstance(part, Image) for part in parts):
        return Message(role, parts=tuple(parts), tool_call_id=tool_call_id)
    return Message(role, "".join(part for part in parts if isinstance(part, str)), tool_call_id=tool_call_id)


def _part(block: Block, where: str) -> Part:
    kind = block.get("type")
    if kind == "text":
        return _text_of(block, where)
    source = block.get("source")
    if kind == "image" and isinstance(source, dict):
        if source.get("type") != "base64":
            raise unsupported(f"{where} is an image somewhere else, and nothing is fetched; send base64.", where)
        return image_of_base64(source.get("data"), source.get("media_type"), where)
    raise unknown_part(kind, where, "text, image and tool_result")


def _result(block: Block, where: str) -> Message:
    content = block.get("content") or ""
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
    parts = [_part(each if isinstance(each, dict) else {}, f"{where}.content.{at}") for at, each in enumerate(blocks)]
    if block.get("is_error") is True:
        parts.insert(0, "Error: ")  # engines know no flag for it, and the model has to learn of it
    return _message(Role.TOOL, parts, str(block.get("tool_use_id") or ""))


def _of_assistant(content: str | list[dict[str, Any]], where: str) -> Message:
    if isinstance(content, str):
        return Message(Role.ASSISTANT, content)
    texts, calls = [], []
    for at, block in enumerate(content):
        match block.get("type"):
            case "tool_use":
                calls.append(_call(block, f"{where}.{at}"))
            case "thinking" | "redacted_thinking":
                continue  # thoughts are the model's own, and templates leave earlier ones out
            case _:
                texts.append(_text_of(block, f"{where}.{at}"))
    return Message(Role.ASSISTANT, "".join(texts), tool_calls=tuple(calls))


def _call(block: Block, where: str) -> ToolCall:
    given = block.get("input")
    if not isinstance(given, dict):
        raise InvalidRequest(f"{where}.input must be an object; send back what the answer held.", param=where)
    return ToolCall(str(block.get("id") or ""), str(block.get("name") or ""), to_json(given).decode())


def tools_of(body: CountRequest) -> tuple[Tool, ...]:
    """The tools that are offered. Raises InvalidRequest for Anthropic's own, which run at Anthropic."""
    tools = []
    for position, tool in enumerate(body.tools or ()):
        if tool.type not in {None, "custom"}:
            raise unsupported(
                f"tools.{position} is {tool.type[:48] if tool.type else ''}, which runs at its vendor; offer tools "
                "with an input_schema of your own.",
                f"tools.{position}",
            )
        schema = "" if tool.input_schema is None else to_json(tool.input_schema).decode()
        tools.append(Tool(tool.name, tool.description or "", schema, tool.strict))
    return tuple(tools)


def tool_choice_of(given: Block | None) -> ToolChoice | None:
    """Whether a tool has to be called. Raises InvalidRequest for what is not understood."""
    if given is None:
        return None
    kind = given.get("type")
    if kind == "tool" and isinstance(given.get("name"), str):
        return ToolChoice(ToolChoiceMode.NAMED, given["name"])
    if not isinstance(kind, str) or kind not in _TOOL_CHOICES:
        raise unsupported('tool_choice is {"type": …} with auto, any, none, or tool and a name.', "tool_choice")
    return ToolChoice(_TOOL_CHOICES[kind])


def parallel_calls_of(given: Block | None) -> bool | None:
    """Whether one answer may call several tools; None leaves it to the engine."""
    disabled = given.get("disable_parallel_tool_use") if given else None
    return not disabled if isinstance(disabled, bool) else None


def format_of(body: CountRequest) -> ResponseFormat | None:
    """What the answer has to be; None where any text will do. Raises InvalidRequest for what is not understood."""
    wanted = body.output_config.format if body.output_config else None
    if wanted is None:
        return None
    if wanted.type != "json_schema" or wanted.json_schema is None:
        raise unsupported('output_config.format is {"type": "json_schema", "schema": {…}}.', "output_config")
    return ResponseFormat(to_json(wanted.json_schema).decode(), "answer", strict=True)
