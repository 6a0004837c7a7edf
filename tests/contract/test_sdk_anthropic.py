"""Anthropic's own SDK, unmodified, against a running gateway."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import pydantic
import pytest
from anthropic.types import MessageParam, ToolParam

from gateway.settings import GatewaySettings
from gateway.testing import CHAT_MODEL, FakePeers, RunningGateway
from mesh.errors import InvalidRequest, Overloaded, Unavailable, WrongState
from mesh.generation import Ending, FinishReason, Piece, ResponseFormat, Role, ToolCallDelta

HELLO: list[MessageParam] = [{"role": "user", "content": "Hi you"}]
LOOK: ToolParam = {
    "name": "look",
    "description": "Looks somewhere.",
    "input_schema": {"type": "object", "properties": {"at": {"type": "integer"}}, "required": ["at"]},
}
CALLED = (
    Piece("Let me see."),
    Piece(tool_calls=(ToolCallDelta(0, "call_7", "look"),)),
    Piece(tool_calls=(ToolCallDelta(0, arguments='{"at": '),)),
    Piece(tool_calls=(ToolCallDelta(0, arguments="3}"),)),
)


@pytest.fixture
def gateway() -> Iterator[RunningGateway]:
    """A gateway on a socket, over stand-ins."""
    settings = GatewaySettings.model_validate({"models": {"aliases": {"claude-sonnet": CHAT_MODEL}}})
    with RunningGateway(settings, FakePeers()) as running:
        yield running


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[anthropic.Anthropic]:
    """The SDK as its documentation makes it, but for the address."""
    with anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0) as made:
        yield made


def test_a_message(gateway: RunningGateway, client: anthropic.Anthropic) -> None:
    """Text, reason and usage; the system prompt reached the worker, and an alias its model."""
    answer = client.messages.create(model="claude-sonnet", max_tokens=64, system="Be brief.", messages=HELLO)
    (block,) = answer.content
    assert block.type == "text"
    assert (block.text, answer.stop_reason, answer.model) == ("Hello!", "end_turn", CHAT_MODEL)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (5, 3)
    asked = gateway.peers.writer.calls[-1].arguments[0]
    assert [(message.role, message.content) for message in asked.messages] == [
        (Role.SYSTEM, "Be brief."),
        (Role.USER, "Hi you"),
    ]


@pytest.mark.parametrize("credentials", [{"api_key": "a"}, {"auth_token": "b"}])
def test_either_way_to_tell_who_one_is_works(gateway: RunningGateway, credentials: dict[str, str]) -> None:
    """``x-api-key`` and ``Authorization``; the answer's id is where the SDK looks for it, also on a failure."""
    with anthropic.Anthropic(base_url=gateway.url, max_retries=0, **credentials) as client:  # type: ignore[arg-type]
        asked = client.with_options(default_headers={"x-request-id": "mine-7"})
        assert asked.messages.create(model=CHAT_MODEL, max_tokens=64, messages=HELLO)._request_id == "mine-7"
        with pytest.raises(anthropic.BadRequestError) as caught:
            asked.messages.create(model=CHAT_MODEL, max_tokens=0, messages=HELLO)
    assert caught.value.request_id == "mine-7"


def test_a_message_streamed(client: anthropic.Anthropic) -> None:
    """The SDK's helper gathers text, reason and usage."""
    with client.messages.stream(model=CHAT_MODEL, max_tokens=64, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == "Hello!"
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == ("end_turn", 5, 3)


async def test_a_message_streamed_asynchronously(gateway: RunningGateway) -> None:
    """The raw events come in Anthropic's order."""
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="none", max_retries=0) as client:
        stream = await client.messages.create(model=CHAT_MODEL, max_tokens=64, messages=HELLO, stream=True)
        kinds = [event.type async for event in stream]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_a_tool_is_called_and_its_result_sent_back(gateway: RunningGateway, client: anthropic.Anthropic) -> None:
    """The SDK's own blocks go back as they came, and the result with them."""
    writer = gateway.peers.writer
    writer.pieces, writer.endings = CALLED, (Ending(FinishReason.TOOL_CALLS),)
    answer = client.messages.create(
        model=CHAT_MODEL, max_tokens=64, messages=HELLO, tools=[LOOK], tool_choice={"type": "any"}
    )
    text, call = answer.content
    assert text.type == "text"
    assert call.type == "tool_use"
    assert (call.id, call.name, call.input, answer.stop_reason) == ("call_7", "look", {"at": 3}, "tool_use")
    writer.pieces, writer.endings = ("A cat.",), (Ending(FinishReason.STOP),)
    client.messages.create(
        model=CHAT_MODEL,
        max_tokens=64,
        tools=[LOOK],
        messages=[
            *HELLO,
            {"role": "assistant", "content": answer.content},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "A cat."}]},
        ],
    )
    asked = writer.calls[-1].arguments[0]
    assert [message.role for message in asked.messages] == [Role.USER, Role.ASSISTANT, Role.TOOL]
    assert (asked.messages[1].tool_calls[0].arguments, asked.messages[2].tool_call_id) == ('{"at":3}', "call_7")


def test_a_tool_call_streamed(gateway: RunningGateway, client: anthropic.Anthropic) -> None:
    """The SDK's helper parses the pieces of the input."""
    writer = gateway.peers.writer
    writer.pieces, writer.endings = CALLED, (Ending(FinishReason.TOOL_CALLS),)
    with client.messages.stream(model=CHAT_MODEL, max_tokens=64, messages=HELLO, tools=[LOOK]) as stream:
        kinds = [event.type for event in stream]
        text, call = stream.get_final_message().content
    assert "input_json" in kinds
    assert text.type == "text"
    assert call.type == "tool_use"
    assert (text.text, call.input) == ("Let me see.", {"at": 3})


class Port(pydantic.BaseModel):
    """What a parsed answer becomes."""

    port: int


def test_an_answer_is_parsed_by_its_schema(gateway: RunningGateway, client: anthropic.Anthropic) -> None:
    """The SDK's parse sends the model's schema, and reads the answer with it."""
    gateway.peers.writer.pieces = ('{"port": ', "8000}")
    answer = client.messages.parse(model=CHAT_MODEL, max_tokens=64, messages=HELLO, output_format=Port)
    assert answer.parsed_output == Port(port=8000)
    wanted = gateway.peers.writer.calls[-1].arguments[0].response_format
    assert isinstance(wanted, ResponseFormat)
    assert '"port"' in (wanted.schema or "")


def test_tokens_are_counted(client: anthropic.Anthropic) -> None:
    """By the count_tokens of the SDK, tools included."""
    assert client.messages.count_tokens(model=CHAT_MODEL, messages=HELLO).input_tokens == 2
    assert client.messages.count_tokens(model=CHAT_MODEL, messages=HELLO, tools=[LOOK]).input_tokens == 12


def test_a_broken_stream_raises_in_the_sdk(gateway: RunningGateway, client: anthropic.Anthropic) -> None:
    """What was written arrives, and then an error instead of a quiet end."""
    gateway.peers.writer.break_with = Unavailable("The worker went away.")
    seen: list[str] = []

    def read() -> None:
        with client.messages.stream(model=CHAT_MODEL, max_tokens=64, messages=HELLO) as stream:
            seen.extend(stream.text_stream)

    with pytest.raises(anthropic.APIStatusError, match="The worker went away"):
        read()
    assert "".join(seen) == "Hello!"


def test_errors_are_the_sdks_own_classes(gateway: RunningGateway, client: anthropic.Anthropic) -> None:
    """Each status becomes its class; what cannot work is sent once, and what is busy again."""
    with pytest.raises(anthropic.NotFoundError, match=CHAT_MODEL):
        client.messages.create(model="claude-9", max_tokens=64, messages=HELLO)
    writer = gateway.peers.writer
    again = client.with_options(max_retries=1)
    for error, kind, sent in (
        (InvalidRequest("Too long."), anthropic.BadRequestError, 1),
        (WrongState("No tools.", reason="UNSUPPORTED_BY_ENGINE", param="tools"), anthropic.ConflictError, 1),
        (Overloaded("Busy.", retry_after=0.01), anthropic.APIStatusError, 2),
        (Unavailable("Away."), anthropic.InternalServerError, 1),
    ):
        writer.calls.clear()
        writer.error = error
        with pytest.raises(kind):
            again.messages.create(model=CHAT_MODEL, max_tokens=64, messages=HELLO)
        assert len(writer.calls) == sent, error
