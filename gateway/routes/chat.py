"""OpenAI's ``POST /v1/chat/completions``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.api import Api, Operation
from gateway.bodies import VendorBody, read_json, require_at_most, require_not_empty
from gateway.exchange import Exchange
from gateway.generation import Count, GenerationBody, Harmless, refuse_unsupported, sampling_of
from gateway.writing import Scribe
from mesh.clients.llm import ChatMessage, Completion, Generation, Role
from mesh.errors import InvalidRequest


class ChatMessageBody(VendorBody):
    """One message; ``content`` may be a text or text parts."""

    role: str
    content: Any = None
    name: str | None = None
    tool_calls: Any = None
    function_call: Any = None


class ChatRequest(GenerationBody):
    """OpenAI's request. Unknown fields are ignored; known ones that are not supported are refused by name."""

    messages: Annotated[list[ChatMessageBody], Field(fail_fast=True)] = Field(
        description='a list of messages such as {"role": "user", "content": "Hello"}'
    )
    max_completion_tokens: Count | None = Field(None, description="a whole number from 1")
    top_logprobs: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None


HARMLESS: Harmless = {
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
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

OPERATION = Operation(
    method="POST",
    path="/v1/chat/completions",
    tag="OpenAI",
    summary="Answer a chat",
    description=(
        "As OpenAI's, whole or streamed as server-sent events. A stream that breaks carries an `error` event and no "
        "`[DONE]`."
    ),
    body=ChatRequest,
    examples={
        "A question": {"messages": [{"role": "user", "content": "What is a hop?"}], "temperature": 0},
        "Streamed": {
            "messages": [{"role": "user", "content": "What is a hop?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
    answer={
        "id": "chatcmpl-6f1c0d1e9f6b4d6c8f5a0b3c2d1e0f9a",
        "object": "chat.completion",
        "created": 1763600000,
        "model": "mesh-demo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "A hop is one call from the gateway to a worker."},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21},
    },
)


class ChatShape:
    """How chat answers look."""

    id_prefix = "chatcmpl-"
    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def choice(self, completion: Completion) -> dict[str, Any]:
        """The whole message."""
        return {
            "index": 0,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": None,
            "finish_reason": completion.reason.value,
        }

    def first(self) -> dict[str, Any] | None:
        """Tells who speaks, before the first word is there."""
        return _choice({"role": "assistant", "content": ""}, None)

    def piece(self, text: str) -> dict[str, Any]:
        """Some words."""
        return _choice({"content": text}, None)

    def last(self, reason: str) -> dict[str, Any]:
        """Why it ended."""
        return _choice({}, reason)


def _choice(delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


@dataclass(frozen=True, slots=True)
class ChatRoute:
    """Answers chats."""

    scribe: Scribe

    def mount(self, api: Api) -> None:
        """Serve it."""
        api.mount(OPERATION, self.create, hop=self.scribe.writer.hop)

    async def create(self, request: Request) -> Response:
        """The assistant's next message."""
        body = await read_json(request, ChatRequest)
        refuse_unsupported(body, HARMLESS)
        require_not_empty(body.messages, "messages")
        require_at_most(len(body.messages), self.scribe.settings.limits.max_messages, "messages")
        generation = Generation(
            model=self.scribe.catalogue.resolve(body.model),
            messages=tuple(_message(message, position) for position, message in enumerate(body.messages)),
            sampling=sampling_of(body, body.max_completion_tokens or body.max_tokens),
        )
        return await self.scribe.answer(
            Exchange.of(request), generation, ChatShape(), stream=bool(body.stream), usage=body.wants_usage
        )


def _message(message: ChatMessageBody, position: int) -> ChatMessage:
    where = f"messages[{position}]"
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidRequest(
            f"{where}.role is {message.role[:32]!r}; there are {', '.join(_ROLES)}.", param=f"{where}.role"
        )
    if message.tool_calls or message.function_call:
        raise InvalidRequest(
            f"{where} holds tool calls, which are not supported here; leave them out.",
            param=f"{where}.tool_calls",
            reason="UNSUPPORTED_PARAMETER",
        )
    return ChatMessage(role=role, content=_text(message.content, f"{where}.content"), name=message.name or "")


def _text(content: Any, where: str) -> str:
    """A message's text; text parts are joined as they stand."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a text, or a list of text parts.", param=where)
    texts = []
    for position, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if kind == "text" else None
        if not isinstance(text, str):
            named = kind if isinstance(kind, str) else "something else"
            raise InvalidRequest(
                f"{where}[{position}] is {named[:32]}; only text parts are supported here.",
                param=f"{where}[{position}]",
                reason="UNSUPPORTED_PARAMETER",
            )
        texts.append(text)
    return "".join(texts)
