"""OpenAI's own SDK, unmodified, against a running gateway."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Iterator

import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionUserMessageParam

from gateway.settings import GatewaySettings
from gateway.testing import CHAT_MODEL, DIMENSIONS, EMBEDDING_MODEL, FakePeers, RunningGateway
from mesh.clients.llm import Role
from mesh.errors import InvalidRequest, Overloaded, Unavailable, WrongState
from mesh.generation import (
    Ending,
    FinishReason,
    Piece,
    ResponseFormat,
    TokenLogprob,
    ToolCallDelta,
    ToolChoiceMode,
    TopLogprob,
)

HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def gateway() -> Iterator[RunningGateway]:
    """A gateway on a socket, over stand-ins."""
    settings = GatewaySettings.model_validate({"models": {"aliases": {"text-embedding-3-small": EMBEDDING_MODEL}}})
    with RunningGateway(settings, FakePeers()) as running:
        yield running


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    """The SDK as its documentation makes it, but for the address."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def async_client(gateway: RunningGateway, retries: int = 0) -> openai.AsyncOpenAI:
    """The SDK's async face."""
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=retries)


def test_embeddings_by_default(client: openai.OpenAI) -> None:
    """The SDK asks for base64 by itself, and decodes it to the numbers that the worker sent."""
    answer = client.embeddings.create(model="text-embedding-3-small", input=["four", "a"])
    assert answer.model == EMBEDDING_MODEL
    assert [list(item.embedding) for item in answer.data] == [[4.0, 4.125, 4.25, 4.375], [1.0, 1.125, 1.25, 1.375]]
    assert [item.index for item in answer.data] == [0, 1]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (5, 5)


def test_embeddings_in_both_encodings(client: openai.OpenAI) -> None:
    """Float and base64 are the same vector; dimensions shorten it."""
    plain = client.embeddings.create(model="all-MiniLM-L6-v2", input="abc", encoding_format="float")
    coded = client.embeddings.create(model="all-MiniLM-L6-v2", input="abc", encoding_format="base64")
    # The SDK leaves an encoding that was asked for as it came, whatever its types say.
    raw = str(coded.data[0].embedding)
    assert list(struct.unpack(f"<{DIMENSIONS}f", base64.b64decode(raw))) == plain.data[0].embedding
    short = client.embeddings.create(model="all-MiniLM-L6-v2", input="abc", dimensions=2)
    assert len(short.data[0].embedding) == 2


def test_token_arrays_are_refused_without_the_vocabulary(client: openai.OpenAI) -> None:
    """A clear error, of the class that a bad request has."""
    for ids in ([9906, 1917], [[9906], [1917]]):
        with pytest.raises(openai.BadRequestError, match="cl100k_base") as caught:
            client.embeddings.create(model="all-MiniLM-L6-v2", input=ids)
        assert caught.value.code == "vocabulary_unavailable"


def test_errors_are_the_sdks_own_classes(gateway: RunningGateway, client: openai.OpenAI) -> None:
    """Each status becomes its class, with message, param and code."""
    with pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(model="nope", input="a")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as empty:
        client.embeddings.create(model="", input=[])
    assert empty.value.code == "empty_input"
    gateway.peers.embedder.error = Overloaded("Busy.", retry_after=2)
    with pytest.raises(openai.RateLimitError) as busy:
        client.embeddings.create(model="", input="a")
    assert busy.value.response.headers["retry-after-ms"] == "2000"
    gateway.peers.embedder.error = Unavailable("Away.")
    with pytest.raises(openai.InternalServerError) as away:
        client.embeddings.create(model="", input="a")
    assert away.value.status_code == 503
    assert away.value.request_id == away.value.response.headers["x-request-id"]


def test_fifty_megabytes_are_refused_and_the_client_reads_why(client: openai.OpenAI) -> None:
    """The SDK sends its whole body before it reads: it still gets the 413 and not a broken pipe."""
    with pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(model="", input="x" * 50_000_000)
    assert caught.value.status_code == 413
    assert client.embeddings.create(model="", input="still alive").data


def test_a_hundred_thousand_texts_are_refused(client: openai.OpenAI) -> None:
    """With both numbers."""
    with pytest.raises(openai.BadRequestError, match="100,000 items; one request takes at most 2,048"):
        client.embeddings.create(model="", input=["a"] * 100_000)


async def test_the_sdk_retries_when_told_and_only_then(gateway: RunningGateway) -> None:
    """x-should-retry decides: busy is tried again, a wrong request is not, nor is a text that may have been begun."""
    async with async_client(gateway, retries=1) as client:
        gateway.peers.embedder.error = Overloaded("Busy.", retry_after=0.001)
        with pytest.raises(openai.RateLimitError):
            await client.embeddings.create(model="", input="a")
        assert len(gateway.peers.embedder.calls) == 2
        gateway.peers.embedder.error = InvalidRequest("No.")
        with pytest.raises(openai.BadRequestError):
            await client.embeddings.create(model="", input="a")
        assert len(gateway.peers.embedder.calls) == 3
        gateway.peers.writer.error = Unavailable("Away.")
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="", messages=HELLO)
        assert len(gateway.peers.writer.calls) == 1


def test_chat(gateway: RunningGateway, client: openai.OpenAI) -> None:
    """A message comes back with its reason and usage; the conversation reached the worker."""
    answer = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        ],
        temperature=0,
        max_completion_tokens=12,
    )
    assert answer.id.startswith("chatcmpl-")
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello!", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 8
    asked = gateway.peers.writer.calls[-1].arguments[0]
    assert [(message.role, message.content) for message in asked.messages] == [
        (Role.SYSTEM, "Be brief."),
        (Role.USER, "Hi"),
    ]


def test_chat_streamed(client: openai.OpenAI) -> None:
    """Role, pieces, reason and usage, through the SDK's own iterator."""
    chunks = list(
        client.chat.completions.create(
            model=CHAT_MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello!"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1


async def test_chat_streamed_through_the_accumulating_helper(gateway: RunningGateway) -> None:
    """The SDK's stream helper puts the whole completion together again."""
    async with async_client(gateway) as client, client.chat.completions.stream(model="", messages=HELLO) as stream:
        async for _ in stream:
            pass
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.content == "Hello!"


def test_a_broken_stream_raises_in_the_sdk(gateway: RunningGateway, client: openai.OpenAI) -> None:
    """What was written arrives, and then an error instead of a quiet end."""
    gateway.peers.writer.break_with = Unavailable("The worker went away.")
    seen: list[str | None] = []

    def read() -> None:
        for chunk in client.chat.completions.create(model="", messages=HELLO, stream=True):
            seen.extend(choice.delta.content for choice in chunk.choices)

    with pytest.raises(openai.APIError, match="The worker went away"):
        read()
    assert "".join(filter(None, seen)) == "Hello!"


async def test_leaving_a_stream_ends_the_writing(gateway: RunningGateway) -> None:
    """Closing the SDK's stream reaches the writer."""
    gateway.peers.writer.pieces = ("x" * 100,) * 100_000
    async with async_client(gateway) as client:
        stream = await client.chat.completions.create(model="", messages=HELLO, stream=True)
        await anext(aiter(stream))
        await stream.close()
    assert await asyncio.to_thread(gateway.peers.writer.closed.wait, 5)
    assert gateway.peers.writer.left_early


def test_completions(client: openai.OpenAI) -> None:
    """The older endpoint, whole and streamed."""
    whole = client.completions.create(model=CHAT_MODEL, prompt="Once")
    assert whole.choices[0].text == "Hello!"
    streamed = client.completions.create(model=CHAT_MODEL, prompt="Once", stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "Hello!"


LOOK: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks somewhere.",
        "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}, "required": ["at"]},
        "strict": True,
    },
}
CALLED = (
    Piece(tool_calls=(ToolCallDelta(0, "call_7", "look"),)),
    Piece(tool_calls=(ToolCallDelta(0, arguments='{"at": '),)),
    Piece(tool_calls=(ToolCallDelta(0, arguments="3}"),)),
)


def test_a_tool_is_called_and_its_result_sent_back(gateway: RunningGateway, client: openai.OpenAI) -> None:
    """The SDK's own message with the call goes back as it came, and the result with it."""
    writer = gateway.peers.writer
    writer.pieces, writer.endings = CALLED, (Ending(FinishReason.TOOL_CALLS),)
    answer = client.chat.completions.create(model="", messages=HELLO, tools=[LOOK], tool_choice="required")
    assert answer.choices[0].finish_reason == "tool_calls"
    message = answer.choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert (call.id, call.function.name, call.function.arguments) == ("call_7", "look", '{"at": 3}')
    assert writer.calls[-1].arguments[0].tool_choice.mode is ToolChoiceMode.REQUIRED
    writer.pieces, writer.endings = ("A cat.",), (Ending(FinishReason.STOP),)
    second = client.chat.completions.create(
        model="",
        messages=[
            *HELLO,
            message.to_dict(),  # type: ignore[list-item]  # as the SDK's documentation sends it back
            {"role": "tool", "tool_call_id": call.id, "content": "A cat."},
        ],
        tools=[LOOK],
    )
    assert second.choices[0].message.content == "A cat."
    asked = writer.calls[-1].arguments[0]
    assert [message.role for message in asked.messages] == [Role.USER, Role.ASSISTANT, Role.TOOL]
    assert asked.messages[1].tool_calls[0].arguments == '{"at": 3}'


async def test_tool_calls_streamed_through_the_accumulating_helper(gateway: RunningGateway) -> None:
    """The SDK gathers the deltas of the arguments, and parses what they amount to."""
    writer = gateway.peers.writer
    writer.pieces, writer.endings = CALLED, (Ending(FinishReason.TOOL_CALLS),)
    async with async_client(gateway) as client:
        async with client.chat.completions.stream(model="", messages=HELLO, tools=[LOOK]) as stream:
            kinds = [event.type async for event in stream]
            completion = await stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    calls = completion.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.parsed_arguments == {"at": 3}


class Port(pydantic.BaseModel):
    """What a parsed answer becomes."""

    port: int


def test_an_answer_is_parsed_by_its_schema(gateway: RunningGateway, client: openai.OpenAI) -> None:
    """The SDK's parse sends the model's schema, and reads the answer with it."""
    gateway.peers.writer.pieces = ('{"port": ', "8000}")
    parsed = client.chat.completions.parse(model="", messages=HELLO, response_format=Port)
    assert parsed.choices[0].message.parsed == Port(port=8000)
    wanted = gateway.peers.writer.calls[-1].arguments[0].response_format
    assert isinstance(wanted, ResponseFormat)
    assert (wanted.name, wanted.strict) == ("Port", True)
    assert '"port"' in (wanted.schema or "")


def test_several_choices_with_probabilities(gateway: RunningGateway, client: openai.OpenAI) -> None:
    """n, seed, stop, logprobs and top_logprobs reach the worker, and come back where the SDK reads them."""
    told = TokenLogprob("a", b"a", -0.5, (TopLogprob("b", b"b", -1.5),))
    writer = gateway.peers.writer
    writer.pieces = (Piece("a", logprobs=(told,)), Piece("c", 1))
    writer.endings = (Ending(FinishReason.STOP, "END"), Ending(FinishReason.LENGTH))
    answer = client.chat.completions.create(
        model="", messages=HELLO, n=2, seed=7, stop=["END"], logprobs=True, top_logprobs=1, max_completion_tokens=9
    )
    assert [choice.message.content for choice in answer.choices] == ["a", "c"]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert (logprobs.content[0].token, logprobs.content[0].top_logprobs[0].logprob) == ("a", -1.5)
    sampling = writer.calls[-1].arguments[0].sampling
    assert (sampling.n, sampling.seed, sampling.stop, sampling.top_logprobs) == (2, 7, ("END",), 1)
    plain = client.completions.create(model="", prompt="Once", logprobs=1, n=2)
    assert plain.choices[0].logprobs is not None
    assert plain.choices[0].logprobs.top_logprobs == [{"b": -1.5}]


def test_what_the_engine_cannot_do_is_told(gateway: RunningGateway, client: openai.OpenAI) -> None:
    """A conflict that the SDK does not repeat, with the field at fault."""
    gateway.peers.writer.error = WrongState("No tools.", reason="UNSUPPORTED_BY_ENGINE", param="tools")
    again = client.with_options(max_retries=3)
    with pytest.raises(openai.ConflictError) as caught:
        again.chat.completions.create(model="", messages=HELLO, tools=[LOOK])
    assert (caught.value.code, caught.value.param) == ("unsupported_by_engine", "tools")
    assert len(gateway.peers.writer.calls) == 1


def test_models(client: openai.OpenAI) -> None:
    """Listed with their capability, and found one by one, slashes and all."""
    listed = {model.id: model.to_dict()["capability"] for model in client.models.list()}
    assert listed[EMBEDDING_MODEL] == listed["text-embedding-3-small"] == "embedding"
    assert listed[CHAT_MODEL] == "chat"
    assert client.models.retrieve(EMBEDDING_MODEL).id == EMBEDDING_MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


def test_what_is_not_here_is_a_404_that_the_sdk_reads(client: openai.OpenAI) -> None:
    """An endpoint that does not exist says so in OpenAI's shape."""
    with pytest.raises(openai.NotFoundError, match="There is no POST /v1/images/generations"):
        client.images.generate(prompt="a")
