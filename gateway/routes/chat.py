"""OpenAI's ``POST /v1/chat/completions``."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from gateway.api import Api, Operation
from gateway.bodies import read_json, require_at_most, require_not_empty
from gateway.exchange import Exchange
from gateway.generation import refuse_unsupported, sampling_of
from gateway.openai_answers import ChatRendering
from gateway.openai_chat import (
    CHAT_HARMLESS,
    ChatRequest,
    format_of,
    message_of,
    tool_choice_of,
    tools_of,
    top_logprobs_of,
)
from gateway.writing import Scribe
from mesh.generation import Generation

OPERATION = Operation(
    method="POST",
    path="/v1/chat/completions",
    tag="OpenAI",
    summary="Answer a chat",
    description=(
        "As OpenAI's, whole or streamed as server-sent events. A stream that breaks carries an `error` event and no "
        "`[DONE]`. What the engine in use cannot do (tools, schemas, several choices, probabilities, images) is "
        "refused with 409 and the name of one that can."
    ),
    body=ChatRequest,
    examples={
        "A question": {"messages": [{"role": "user", "content": "What is a hop?"}], "temperature": 0},
        "Streamed": {
            "messages": [{"role": "user", "content": "What is a hop?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        "As JSON": {
            "messages": [{"role": "user", "content": "Name a port."}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "port",
                    "schema": {"type": "object", "properties": {"port": {"type": "integer"}}, "required": ["port"]},
                },
            },
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


@dataclass(frozen=True, slots=True)
class ChatRoute:
    """Answers chats."""

    scribe: Scribe

    def mount(self, api: Api) -> None:
        """Serve it."""
        api.mount(OPERATION, self.create, hop=self.scribe.writers.hop)

    async def create(self, request: Request) -> Response:
        """The assistant's next message."""
        body = await read_json(request, ChatRequest)
        refuse_unsupported(body, CHAT_HARMLESS)
        require_not_empty(body.messages, "messages")
        require_at_most(len(body.messages), self.scribe.settings.limits.max_messages, "messages")
        tools = tools_of(body)
        generation = Generation(
            model=self.scribe.catalogue.resolve(body.model),
            messages=tuple(message_of(message, position) for position, message in enumerate(body.messages)),
            sampling=sampling_of(body, body.max_completion_tokens or body.max_tokens, top_logprobs_of(body)),
            tools=tools,
            tool_choice=tool_choice_of(body.tool_choice),
            parallel_tool_calls=body.parallel_tool_calls if tools else None,
            response_format=format_of(body.response_format),
        )
        exchange = Exchange.of(request)
        rendering = ChatRendering(exchange, choices=generation.choices, usage=body.wants_usage)
        return await self.scribe.answer(exchange, generation, rendering, stream=bool(body.stream))
