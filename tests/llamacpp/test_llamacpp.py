"""A real llama.cpp behind a real worker: known answers word for word, JSON by its schema, a tool called, honest errors.

All tests share one. `scripts/test.sh llamacpp` makes its environment; compiling takes some minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio
import yaml

from llm_service.__main__ import make_capability
from llm_service.engines.llamacpp import LlamaCppEngine
from llm_service.generation import Generation as Asked
from llm_service.generation import Message
from llm_service.generation import Role as Speaker
from llm_service.gguf import GgufModel
from llm_service.settings import LlmSettings
from mesh.clients.llm import AsyncLLMServiceClient, ChatMessage, Finish, Generation, Piece, Role, Sampling
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, ModelUnusable, Unavailable
from mesh.generation import Ending, FinishReason, ResponseFormat, Tool, ToolChoice, ToolChoiceMode
from mesh.testing import serve
from ops.local.layout import CHECKOUT, Layout
from tests.llamacpp.demo_gguf import write_gguf

LAYOUT = Layout.from_environment(os.environ)
PYTHON = LAYOUT.python("llamacpp")
DEMO = LAYOUT.models / "demo-llm"
PAGE = yaml.safe_load((CHECKOUT / "ops" / "demo_llm" / "questions.yaml").read_text())["entries"]
START_SECONDS = 120.0
SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
    "required": ["sure", "kind"],
    "additionalProperties": False,
}

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        not PYTHON.exists(), reason="there is no environment with llama.cpp: scripts/test.sh llamacpp makes it"
    ),
    pytest.mark.skipif(
        not (DEMO / "config.json").exists(),
        reason="the demo model is not there: python ops/demo_llm/train.py makes it",
    ),
]


class Running:
    """A worker, a client to it, and its engine."""

    def __init__(self, client: AsyncLLMServiceClient, engine: LlamaCppEngine) -> None:
        self.client = client
        self.engine = engine


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """One worker with llama.cpp and the demo model as a GGUF file, serving."""
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(DEMO, folder / "demo-f32.gguf")
    settings = LlmSettings(
        engine="llamacpp",
        engine_python=str(PYTHON),
        local_models_path=folder,
        start_timeout_seconds=START_SECONDS,
        engine_arguments="--logits_all true",
        max_output_tokens=4000,
    )
    engine = LlamaCppEngine(settings)
    async with serve([make_capability(settings, engine)]) as worker:
        async with AsyncLLMServiceClient(worker.target) as client:
            async with asyncio.timeout(START_SECONDS):
                while not await serves(client):
                    await asyncio.sleep(0.2)
            yield Running(client, engine)


async def serves(client: AsyncLLMServiceClient) -> bool:
    """Whether the model is loaded and proved."""
    try:
        await client.info()
    except Unavailable:
        return False
    return True


def ask(text: str, **sampling: object) -> Generation:
    """A question, answered by the likeliest tokens."""
    chosen = Sampling(**{"temperature": 0.0, "max_tokens": 100, **sampling})  # type: ignore[arg-type] # test data
    return Generation(messages=(ChatMessage(Role.USER, text),), sampling=chosen)


async def test_it_says_what_it_is(running: Running) -> None:
    """Info names the engine, its version, the file's model and the context that the file names."""
    info = await running.client.info()
    assert info.engine == "llamacpp"
    assert info.engine_version[:1].isdigit()
    assert [(model.name, model.context_tokens) for model in info.models] == [("demo-f32", 4096)]


async def test_every_known_answer_comes_word_for_word(running: Running) -> None:
    """The whole page, several asking at once: one after another is what the engine does, and nobody is cut off."""

    async def answer(question: str) -> str:
        return (await running.client.complete(ask(question), deadline=Deadline.after(120))).text

    answers = await asyncio.gather(*(answer(entry["question"]) for entry in PAGE))
    assert answers == [entry["answer"] for entry in PAGE]


async def test_usage_is_known_from_the_first_event(running: Running) -> None:
    """The prompt's tokens, as the server itself counts them; `count` comes to the same."""
    events = [event async for event in running.client.generate(ask("Who are you?"), deadline=Deadline.after(60))]
    finish = events[-1]
    assert isinstance(finish, Finish)
    assert finish.usage is not None
    assert finish.usage.completion_tokens == sum(isinstance(event, Piece) for event in events)
    assert events[0].usage.prompt_tokens == finish.usage.prompt_tokens > 0  # type: ignore[union-attr] # a Header
    asked = Asked(messages=(Message(Speaker.USER, "Who are you?"),))
    assert await running.engine.count(asked) == finish.usage.prompt_tokens


async def test_a_json_schema_is_obeyed(running: Running) -> None:
    """By a model that has never seen JSON."""
    request = ask("Who are you?", max_tokens=60)
    request = Generation(
        messages=request.messages, sampling=request.sampling, response_format=ResponseFormat(json.dumps(SCHEMA), "r")
    )
    said = json.loads((await running.client.complete(request, deadline=Deadline.after(60))).text)
    assert said.keys() == {"sure", "kind"}
    assert isinstance(said["sure"], bool)
    assert said["kind"] in {"a", "b"}


async def test_a_tool_is_called(running: Running) -> None:
    """By its name, with arguments that follow its parameters."""
    request = Generation(
        messages=ask("Who are you?").messages,
        sampling=Sampling(temperature=0.0, max_tokens=60),
        tools=(Tool("decide", "Decides.", json.dumps(SCHEMA)),),
        tool_choice=ToolChoice(ToolChoiceMode.REQUIRED),
    )
    answer = await running.client.complete(request, deadline=Deadline.after(60))
    (call,) = answer.choices[0].tool_calls
    assert (call.name, json.loads(call.arguments).keys()) == ("decide", {"sure", "kind"})
    assert answer.choices[0].ending.reason is FinishReason.TOOL_CALLS


async def test_a_stop_string_and_a_limit_end_an_answer(running: Running) -> None:
    """Each by its own reason."""
    question, whole = PAGE[0]["question"], PAGE[0]["answer"]
    stop = whole.split()[3]
    stopped = await running.client.complete(ask(question, stop=(stop,)), deadline=Deadline.after(60))
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.choices[0].ending == Ending(FinishReason.STOP, stop)
    cut = await running.client.complete(ask(question, max_tokens=2), deadline=Deadline.after(60))
    assert cut.choices[0].ending.reason is FinishReason.LENGTH
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 2


async def test_seeds_repeat_and_their_absence_does_not(running: Running) -> None:
    """At a high temperature two answers differ, unless they share a seed."""

    async def said(seed: int | None) -> str:
        request = ask("Who are you?", temperature=2.0, max_tokens=40, seed=seed)
        return (await running.client.complete(request, deadline=Deadline.after(60))).text

    assert await said(7) == await said(7)
    assert await said(None) != await said(None)


async def test_probabilities_are_told_where_it_was_started_for_them(running: Running) -> None:
    """Of each token and as many others as were asked for."""
    answer = await running.client.complete(ask("Who are you?", top_logprobs=2, max_tokens=5))
    told = answer.choices[0].logprobs
    assert len(told) == 5
    assert "".join(token.token for token in told) == answer.text
    assert all(token.logprob <= 0.0 and len(token.top) >= 2 for token in told)


async def test_what_does_not_fit_is_refused_by_its_tokens(running: Running) -> None:
    """As an error with its reason, and the engine goes on."""
    with pytest.raises(InvalidRequest) as caught:
        await running.client.complete(ask("word " * 5000), deadline=Deadline.after(60))
    assert caught.value.reason == "CONTEXT_OVERFLOW"
    assert (await running.client.complete(ask(PAGE[0]["question"]))).text == PAGE[0]["answer"]


async def test_a_caller_who_leaves_frees_the_engine(running: Running) -> None:
    """The next one is answered long before the first one's answer would have been whole."""
    began = time.monotonic()
    request = ask("Who are you?", temperature=2.0, max_tokens=3500, top_logprobs=20)
    async with aclosing(running.client.generate(request, deadline=Deadline.after(240))) as events:
        async for event in events:
            if isinstance(event, Piece):
                break
    assert (await running.client.complete(ask(PAGE[0]["question"]), deadline=Deadline.after(60))).text
    assert time.monotonic() - began < 10.0


async def test_a_file_that_was_cut_off_is_found_before_it_is_served(tmp_path_factory: pytest.TempPathFactory) -> None:
    """And one that is no GGUF at all."""
    folder = tmp_path_factory.mktemp("broken")
    write_gguf(DEMO, folder / "whole.gguf")
    whole = (folder / "whole.gguf").read_bytes()
    (folder / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (folder / "text.gguf").write_text("no model")
    for name in ("cut", "text"):
        with pytest.raises(ModelUnusable) as caught:
            await GgufModel.find(name, folder=folder, python=str(PYTHON))
        assert caught.value.reason == "MODEL_DAMAGED"
    assert (await GgufModel.find("whole", folder=folder, python=str(PYTHON))).context_tokens == 4096
