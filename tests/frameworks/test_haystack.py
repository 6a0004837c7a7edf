"""Haystack's OpenAIChatGenerator, unmodified."""

from __future__ import annotations

from typing import Any

import openai
import pydantic
import pytest
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.tools import create_tool_from_function
from haystack.utils import Secret

from gateway.testing import CHAT_MODEL, RunningGateway
from mesh.errors import Unavailable
from mesh.generation import ResponseFormat, Role

HELLO = [ChatMessage.from_system("Be brief."), ChatMessage.from_user("Hi")]


class Port(pydantic.BaseModel):
    """What a structured answer becomes."""

    port: int


def look(at: int) -> str:
    """Looks somewhere."""
    return f"A cat at {at}."


def generator_of(gateway: RunningGateway, **options: Any) -> OpenAIChatGenerator:
    """As the documentation makes it, but for the address."""
    return OpenAIChatGenerator(
        model=CHAT_MODEL,
        api_base_url=f"{gateway.url}/v1",
        api_key=Secret.from_token("none"),
        max_retries=0,
        **options,
    )


async def test_a_chat(gateway: RunningGateway) -> None:
    """On both faces: text, reason and usage; the conversation and the limit reached the worker."""
    generator = generator_of(gateway, generation_kwargs={"max_completion_tokens": 9, "temperature": 0})
    for answered in (generator.run(HELLO), await generator.run_async(HELLO)):
        (reply,) = answered["replies"]
        assert reply.text == "Hello!"
        assert reply.meta["finish_reason"] == "stop"
        assert reply.meta["usage"]["total_tokens"] == 8
        asked = gateway.peers.writer.calls[-1].arguments[0]
        assert [message.role for message in asked.messages] == [Role.SYSTEM, Role.USER]
        assert asked.sampling.max_tokens == 9


def test_a_chat_streamed(gateway: RunningGateway) -> None:
    """Piece by piece to the callback, and whole in the reply."""
    chunks: list[StreamingChunk] = []
    (reply,) = generator_of(gateway).run(HELLO, streaming_callback=chunks.append)["replies"]
    assert [chunk.content for chunk in chunks if chunk.content] == ["Hel", "lo", "!"]
    assert (reply.text, reply.meta["finish_reason"]) == ("Hello!", "stop")


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_are_called_and_their_results_sent_back(calling: RunningGateway, *, streamed: bool) -> None:
    """The call is parsed; the next turn carries call and result."""
    tool = create_tool_from_function(look)
    generator = generator_of(calling, tools=[tool], streaming_callback=(lambda chunk: None) if streamed else None)
    (reply,) = generator.run(HELLO)["replies"]
    (call,) = reply.tool_calls
    assert (call.tool_name, call.arguments, call.id) == ("look", {"at": 3}, "call_7")
    result = ChatMessage.from_tool(tool.invoke(**call.arguments), origin=call)
    generator.run([*HELLO, reply, result])
    asked = calling.peers.writer.calls[-1].arguments[0]
    assert [message.role for message in asked.messages[2:]] == [Role.ASSISTANT, Role.TOOL]
    assert (asked.messages[3].content, asked.messages[3].tool_call_id) == ("A cat at 3.", "call_7")


def test_a_structured_answer(gateway: RunningGateway) -> None:
    """The schema reaches the worker, and the answer fits it."""
    gateway.peers.writer.pieces = ('{"port": ', "8000}")
    generator = generator_of(gateway, generation_kwargs={"response_format": Port})
    (reply,) = generator.run(HELLO)["replies"]
    assert Port.model_validate_json(reply.text) == Port(port=8000)
    wanted = gateway.peers.writer.calls[-1].arguments[0].response_format
    assert isinstance(wanted, ResponseFormat)
    assert '"port"' in (wanted.schema or "")


def test_a_broken_stream_raises(gateway: RunningGateway) -> None:
    """Half an answer is never taken for a whole one."""
    gateway.peers.writer.break_with = Unavailable("The worker went away.")
    chunks: list[StreamingChunk] = []
    with pytest.raises(openai.APIError, match="The worker went away"):
        generator_of(gateway).run(HELLO, streaming_callback=chunks.append)
    assert "".join(chunk.content for chunk in chunks) == "Hello!"
