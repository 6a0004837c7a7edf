"""The vendors' SDKs through the whole path: gateway, gRPC, worker and a real vLLM that knows a page by heart."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import openai
import pytest
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionUserMessageParam

from mesh.clients.llm import AsyncLLMServiceClient
from tests.vllm.stand import MODEL, PAGE, RUNNING, WAITING, VllmMesh

pytestmark = pytest.mark.asyncio(loop_scope="session")

STREAMS = 32
PORT: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "open_port",
        "description": "Open a port.",
        "parameters": {
            "type": "object",
            "properties": {"port": {"enum": [8000, 50051]}, "protocol": {"enum": ["tcp", "udp"]}},
            "required": ["port", "protocol"],
            "additionalProperties": False,
        },
    },
}


def asked(text: str) -> list[ChatCompletionUserMessageParam]:
    """A question."""
    return [{"role": "user", "content": text}]


async def test_it_says_what_it_is(mesh: VllmMesh) -> None:
    """Info names the engine, its version, the model and the context."""
    async with AsyncLLMServiceClient(mesh.worker.target) as worker:
        info = await worker.info()
    assert info.engine == "vllm"
    assert info.engine_version[:1].isdigit()
    assert [(model.name, model.context_tokens) for model in info.models] == [(MODEL, 4096)]


async def test_every_known_answer_comes_word_for_word(client: openai.AsyncOpenAI) -> None:
    """The whole page, many at once: a batch says what each would say alone."""

    async def answer(question: str) -> str | None:
        done = await client.chat.completions.create(model=MODEL, messages=asked(question), temperature=0)
        return done.choices[0].message.content

    answers = await asyncio.gather(*(answer(entry["question"]) for entry in PAGE))
    assert answers == [entry["answer"] for entry in PAGE]


async def test_streams_side_by_side_are_each_whole(client: openai.AsyncOpenAI) -> None:
    """Each of 32 gets its own answer in several pieces, one reason for its end, and its own usage."""
    entries = [PAGE[number % len(PAGE)] for number in range(STREAMS)]

    async def read(question: str) -> tuple[list[str], list[str], int]:
        pieces: list[str] = []
        reasons: list[str] = []
        tokens = 0
        stream = await client.chat.completions.create(
            model=MODEL, messages=asked(question), temperature=0, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            for choice in chunk.choices:
                pieces.append(choice.delta.content or "")
                reasons += [choice.finish_reason] if choice.finish_reason else []
            tokens += chunk.usage.completion_tokens if chunk.usage else 0
        return [piece for piece in pieces if piece], reasons, tokens

    results = await asyncio.gather(*(read(entry["question"]) for entry in entries))
    assert ["".join(pieces) for pieces, _, _ in results] == [entry["answer"] for entry in entries]
    assert all(reasons == ["stop"] for _, reasons, _ in results)
    for pieces, _, tokens in results:
        assert 1 < len(pieces) <= tokens


async def test_a_schema_is_obeyed(client: openai.AsyncOpenAI) -> None:
    """A model that has never seen JSON writes just what the schema allows."""
    schema = {
        "type": "object",
        "properties": {"port": {"enum": [8000, 50051]}, "open": {"type": "boolean"}},
        "required": ["port", "open"],
        "additionalProperties": False,
    }
    done = await client.chat.completions.create(
        model=MODEL,
        messages=asked("Which port does the gateway use?"),
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "port", "schema": schema, "strict": True}},
    )
    said = json.loads(done.choices[0].message.content or "")
    assert set(said) == {"port", "open"}
    assert said["port"] in {8000, 50051}
    assert isinstance(said["open"], bool)
    assert done.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "open_port"}}])
async def test_a_tool_is_called(client: openai.AsyncOpenAI, choice: Any) -> None:
    """Required or named, the call names the tool and its arguments obey the tool's schema."""
    done = await client.chat.completions.create(
        model=MODEL,
        messages=asked("Which port does the gateway use?"),
        temperature=0,
        max_tokens=200,
        tools=[PORT],
        tool_choice=choice,
    )
    calls = done.choices[0].message.tool_calls or []
    assert len(calls) == 1
    call = calls[0]
    assert call.type == "function"
    assert call.function.name == "open_port"
    said = json.loads(call.function.arguments)
    assert said["port"] in {8000, 50051}
    assert said["protocol"] in {"tcp", "udp"}
    assert call.id


async def test_a_tool_that_may_be_called_needs_a_parser(client: openai.AsyncOpenAI) -> None:
    """Nobody said how this model writes calls: it is refused, instead of a call that looks like text."""
    with pytest.raises(openai.ConflictError) as caught:
        await client.chat.completions.create(model=MODEL, messages=asked("Hi"), tools=[PORT])
    assert caught.value.code == "unsupported_by_engine"


async def test_the_prompt_is_counted_as_the_engine_counts_it(mesh: VllmMesh, client: openai.AsyncOpenAI) -> None:
    """The count beforehand is the usage afterwards, in both dialects."""
    done = await client.chat.completions.create(model=MODEL, messages=asked("Who are you?"), max_tokens=1)
    async with anthropic.AsyncAnthropic(base_url=mesh.gateway.url, api_key="none", max_retries=0) as other:
        counted = await other.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "Who are you?"}])
    assert done.usage is not None
    assert counted.input_tokens == done.usage.prompt_tokens > 0


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        ({"messages": asked("word " * 5000)}, "context_overflow"),
        ({"messages": asked("Hi"), "n": 10_000}, None),
        ({"messages": asked("Hi"), "response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"type": "nonsense"}}}}, None),
        ({"messages": asked("Hi"), "model": "unknown"}, "model_not_found"),
    ],
    ids=["too long", "too many choices", "a broken schema", "another model"],
)  # fmt: skip
async def test_what_is_refused_never_reaches_the_engine(
    mesh: VllmMesh, client: openai.AsyncOpenAI, refused: dict[str, object], reason: str | None
) -> None:
    """Its own counters do not move, but for the canary's single tokens."""
    before = await mesh.engine()
    with pytest.raises((openai.BadRequestError, openai.NotFoundError, openai.UnprocessableEntityError)) as caught:
        await client.chat.completions.create(**{"model": MODEL, **refused})  # type: ignore[call-overload] # test data
    if reason:
        assert caught.value.code == reason
    counted = (await mesh.engine()).since(before)
    assert counted.total("vllm:prompt_tokens_total") < 20 * (1 + counted.total("vllm:request_success_total"))
    assert counted.total("vllm:generation_tokens_total") <= counted.total("vllm:request_success_total") <= 2


async def test_its_metrics_are_published_by_the_worker(mesh: VllmMesh) -> None:
    """What autoscalers and routers look for is there under vLLM's names, with the public name of the model."""
    published = await mesh.published()
    for name in (RUNNING, WAITING, "vllm:kv_cache_usage_perc", "vllm:time_to_first_token_seconds_count"):
        found = [dict(labels)["model_name"] for metric, labels in published.values if metric == name]
        assert found == [MODEL], name
