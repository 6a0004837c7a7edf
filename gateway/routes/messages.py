"""Anthropic's ``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from __future__ import annotations

from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import Response

from gateway.answers import json_answer
from gateway.anthropic_answers import MessageRendering
from gateway.anthropic_messages import (
    HARMLESS,
    CountRequest,
    MessagesRequest,
    format_of,
    messages_of,
    parallel_calls_of,
    refuse_prefill,
    refuse_thinking,
    sampling_of,
    tool_choice_of,
    tools_of,
)
from gateway.api import Api, Operation
from gateway.bodies import read_json, require_at_most, require_not_empty
from gateway.exchange import Exchange
from gateway.generation import refuse_unsupported
from gateway.writing import Scribe
from mesh.generation import Generation

_HELLO = {"model": "mesh-demo", "messages": [{"role": "user", "content": "What is a hop?"}]}

CREATE = Operation(
    method="POST",
    path="/v1/messages",
    tag="Anthropic",
    summary="Answer a conversation",
    description=(
        "As Anthropic's, whole or streamed as named server-sent events, tools included. A stream that breaks carries "
        "an `error` event and no `message_stop`. `cache_control` is ignored: the engine caches prefixes by itself."
    ),
    body=MessagesRequest,
    examples={
        "A question": {**_HELLO, "max_tokens": 64},
        "With a tool": {
            **_HELLO,
            "max_tokens": 64,
            "tools": [{"name": "look", "input_schema": {"type": "object", "properties": {"at": {"type": "integer"}}}}],
        },
    },
    answer={
        "id": "msg_6f1c0d1e9f6b4d6c8f5a0b3c2d1e0f9a",
        "type": "message",
        "role": "assistant",
        "model": "mesh-demo",
        "content": [{"type": "text", "text": "A hop is one call from the gateway to a worker."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": 12},
    },
)
COUNT = Operation(
    method="POST",
    path="/v1/messages/count_tokens",
    tag="Anthropic",
    summary="Count a conversation's tokens",
    description="By the served model's own tokenizer and chat template, as far as the engine tells.",
    body=CountRequest,
    examples={"A question": _HELLO},
    answer={"input_tokens": 14},
)


@dataclass(frozen=True, slots=True)
class MessagesRoute:
    """Answers conversations in Anthropic's dialect."""

    scribe: Scribe

    def mount(self, api: Api) -> None:
        """Serve it."""
        hop = self.scribe.writers.hop
        api.mount(CREATE, self.create, hop=hop)
        api.mount(COUNT, self.count, hop=hop)

    async def create(self, request: Request) -> Response:
        """The assistant's next message."""
        body = await read_json(request, MessagesRequest)
        generation = replace(self._generation(body), sampling=sampling_of(body), response_format=format_of(body))
        refuse_prefill(body)
        exchange = Exchange.of(request)
        return await self.scribe.answer(exchange, generation, MessageRendering(exchange), stream=bool(body.stream))

    async def count(self, request: Request) -> Response:
        """What the conversation takes of the context."""
        body = await read_json(request, CountRequest)
        counted = await self.scribe.count(Exchange.of(request), self._generation(body))
        return json_answer({"input_tokens": counted.prompt_tokens})

    def _generation(self, body: CountRequest) -> Generation:
        """What both requests have in common."""
        refuse_unsupported(body, HARMLESS)
        refuse_thinking(body)
        require_not_empty(body.messages, "messages")
        require_at_most(len(body.messages), self.scribe.settings.limits.max_messages, "messages")
        tools = tools_of(body)
        return Generation(
            model=self.scribe.catalogue.resolve(body.model),
            messages=messages_of(body),
            tools=tools,
            tool_choice=tool_choice_of(body.tool_choice),
            parallel_tool_calls=parallel_calls_of(body.tool_choice) if tools else None,
        )
