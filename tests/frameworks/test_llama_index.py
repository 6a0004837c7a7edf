"""LlamaIndex's clients for OpenAI and for whoever speaks like it, unmodified."""

from __future__ import annotations

from typing import Any

import openai
import pydantic
import pytest
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike

from gateway.testing import CHAT_MODEL, RunningGateway
from mesh.errors import Unavailable
from mesh.generation import ResponseFormat, Role

KNOWN_MODEL = "gpt-4o-mini"
HELLO = [ChatMessage(role=MessageRole.SYSTEM, content="Be brief."), ChatMessage(role=MessageRole.USER, content="Hi")]


class Port(pydantic.BaseModel):
    """What a structured answer becomes."""

    port: int


def look(at: int) -> str:
    """Looks somewhere."""
    return f"A cat at {at}."


def model_of(gateway: RunningGateway, **options: Any) -> OpenAI:
    """As the documentation makes it, but for the address; the model's name is an alias in the gateway."""
    return OpenAI(model=KNOWN_MODEL, api_base=f"{gateway.url}/v1", api_key="none", max_retries=0, **options)


def like_of(gateway: RunningGateway, **options: Any) -> OpenAILike:
    """The client for servers that are not OpenAI, by the served model's own name."""
    return OpenAILike(model=CHAT_MODEL, api_base=f"{gateway.url}/v1", api_key="none", max_retries=0, **options)


def test_a_chat(gateway: RunningGateway) -> None:
    """By both clients; the conversation and the limit reached the worker."""
    for model in (model_of(gateway, max_tokens=9), like_of(gateway, max_tokens=9, is_chat_model=True)):
        assert model.chat(HELLO).message.content == "Hello!"
        asked = gateway.peers.writer.calls[-1].arguments[0]
        assert [(message.role, message.content) for message in asked.messages] == [
            (Role.SYSTEM, "Be brief."),
            (Role.USER, "Hi"),
        ]
        assert asked.sampling.max_tokens == 9


async def test_a_chat_streamed(gateway: RunningGateway) -> None:
    """Piece by piece, on both faces."""
    model = model_of(gateway)
    assert [part.delta for part in model.stream_chat(HELLO) if part.delta] == ["Hel", "lo", "!"]
    stream = await model.astream_chat(HELLO)
    assert [part.delta async for part in stream if part.delta] == ["Hel", "lo", "!"]


def test_a_prompt_is_continued(gateway: RunningGateway) -> None:
    """By the older endpoint, whole and streamed."""
    model = like_of(gateway, is_chat_model=False)
    assert model.complete("Once").text == "Hello!"
    assert gateway.peers.writer.calls[-1].arguments[0].prompt == "Once"
    assert [part.delta for part in model.stream_complete("Once") if part.delta] == ["Hel", "lo", "!"]


def test_tools_are_called(calling: RunningGateway) -> None:
    """Whole, streamed, and carried out by the framework itself."""
    model, tool = model_of(calling), FunctionTool.from_defaults(look)
    answer = model.chat_with_tools([tool], user_msg="Where is the cat?", tool_required=True)
    (call,) = model.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs, call.tool_id) == ("look", {"at": 3}, "call_7")
    *_, last = model.stream_chat_with_tools([tool], user_msg="Where is the cat?")
    assert model.get_tool_calls_from_response(last)[0].tool_kwargs == {"at": 3}
    assert model.predict_and_call([tool], user_msg="Where is the cat?").response == "A cat at 3."


def test_a_structured_answer(gateway: RunningGateway) -> None:
    """The schema reaches the worker, and the answer is read with it."""
    gateway.peers.writer.pieces = ('{"port": ', "8000}")
    assert model_of(gateway).structured_predict(Port, PromptTemplate("Which port?")) == Port(port=8000)
    wanted = gateway.peers.writer.calls[-1].arguments[0].response_format
    assert isinstance(wanted, ResponseFormat)
    assert '"port"' in (wanted.schema or "")


def test_a_broken_stream_raises(gateway: RunningGateway) -> None:
    """Half an answer is never taken for a whole one."""
    gateway.peers.writer.break_with = Unavailable("The worker went away.")
    seen = []
    with pytest.raises(openai.APIError, match="The worker went away"):
        for part in model_of(gateway).stream_chat(HELLO):
            seen.append(part.delta or "")
    assert "".join(seen) == "Hello!"
