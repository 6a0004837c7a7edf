"""LangChain's ChatOpenAI, unmodified."""

from __future__ import annotations

from typing import Any

import openai
import pydantic
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from gateway.testing import CHAT_MODEL, RunningGateway
from mesh.errors import Unavailable
from mesh.generation import ResponseFormat, Role


class Port(pydantic.BaseModel):
    """What a structured answer becomes."""

    port: int


def look(at: int) -> str:
    """Looks somewhere."""
    return f"A cat at {at}."


LOOK = tool(look)


def model_of(gateway: RunningGateway, **options: Any) -> ChatOpenAI:
    """As the documentation makes it, but for the address."""
    return ChatOpenAI(model=CHAT_MODEL, base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, **options)


def test_a_chat(gateway: RunningGateway) -> None:
    """Text, reason and usage; the conversation and the limit reached the worker."""
    answer = model_of(gateway, max_tokens=9, temperature=0).invoke([SystemMessage("Be brief."), HumanMessage("Hi")])
    assert answer.content == "Hello!"
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] == 8
    asked = gateway.peers.writer.calls[-1].arguments[0]
    assert [(message.role, message.content) for message in asked.messages] == [
        (Role.SYSTEM, "Be brief."),
        (Role.USER, "Hi"),
    ]
    assert asked.sampling.max_tokens == 9


async def test_a_chat_streamed(gateway: RunningGateway) -> None:
    """Piece by piece, on both faces, with the usage at the end."""
    model = model_of(gateway, stream_usage=True)
    for chunks in (list(model.stream("Hi")), [chunk async for chunk in model.astream("Hi")]):
        assert [chunk.content for chunk in chunks if chunk.content] == ["Hel", "lo", "!"]
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        assert whole.usage_metadata is not None
        assert whole.usage_metadata["output_tokens"] == 3


def test_tools_are_called_and_their_results_sent_back(calling: RunningGateway) -> None:
    """Whole and streamed, the call is parsed; the next turn carries call and result."""
    model = model_of(calling).bind_tools([LOOK], tool_choice="look")
    answer = model.invoke("Where is the cat?")
    assert isinstance(answer, AIMessage)
    (call,) = answer.tool_calls
    assert (call["name"], call["args"], call["id"]) == ("look", {"at": 3}, "call_7")
    streamed = AIMessageChunk("")
    for chunk in model.stream("Where is the cat?"):
        assert isinstance(chunk, AIMessageChunk)
        streamed += chunk
    assert streamed.tool_calls == answer.tool_calls
    result = LOOK.invoke(call)
    assert isinstance(result, ToolMessage)
    model.invoke([HumanMessage("Where is the cat?"), answer, result])
    asked = calling.peers.writer.calls[-1].arguments[0]
    assert [message.role for message in asked.messages] == [Role.USER, Role.ASSISTANT, Role.TOOL]
    assert (asked.messages[2].content, asked.messages[2].tool_call_id) == ("A cat at 3.", "call_7")
    assert asked.tool_choice.name == "look"


def test_a_structured_answer(gateway: RunningGateway) -> None:
    """The schema reaches the worker, and the answer is read with it."""
    gateway.peers.writer.pieces = ('{"port": ', "8000}")
    structured = model_of(gateway).with_structured_output(Port)
    assert structured.invoke("Which port?") == Port(port=8000)
    wanted = gateway.peers.writer.calls[-1].arguments[0].response_format
    assert isinstance(wanted, ResponseFormat)
    assert '"port"' in (wanted.schema or "")


def test_a_broken_stream_raises(gateway: RunningGateway) -> None:
    """Half an answer is never taken for a whole one."""
    gateway.peers.writer.break_with = Unavailable("The worker went away.")
    seen = []
    with pytest.raises(openai.APIError, match="The worker went away"):
        for chunk in model_of(gateway).stream("Hi"):
            seen.append(chunk.content)
    assert "".join(map(str, seen)) == "Hello!"
