"""A real vLLM behind a real worker: known answers word for word, many at once, and slots that are free when one leaves.

It takes a minute to start, so all tests share one. `scripts/test.sh vllm` makes its environment.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
import yaml
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from llm_service.__main__ import make_capability
from llm_service.engines.vllm import VllmEngine
from llm_service.generation import Generation as Asked
from llm_service.generation import Message
from llm_service.generation import Role as Speaker
from llm_service.settings import LlmSettings
from mesh.clients.llm import AsyncLLMServiceClient, ChatMessage, Finish, Generation, Piece, Role, Sampling
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest
from mesh.testing import serve
from ops.local.layout import CHECKOUT, Layout

LAYOUT = Layout.from_environment(os.environ)
PYTHON = LAYOUT.python("vllm")
PAGE = yaml.safe_load((CHECKOUT / "ops" / "demo_llm" / "questions.yaml").read_text())["entries"]
STREAMS = 32
CROWD = 128
ENDLESS = 4_242
"""The seed of requests that vLLM is told not to end by itself: the demo model's own answers are short."""
START_SECONDS = 300.0

pytest.importorskip("tokenizers", reason="counts the prompt's tokens")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not PYTHON.exists(), reason="there is no environment with vLLM: scripts/test.sh vllm makes it"),
    pytest.mark.skipif(
        not (LAYOUT.models / "demo-llm" / "config.json").exists(),
        reason="the demo model is not there: python ops/demo_llm/train.py makes it",
    ),
]


class EndlessVllm(VllmEngine):
    """vLLM, told to go on for ever where the seed says so."""

    def _asked(self, request: Asked) -> tuple[str, dict[str, Any]]:
        route, body = super()._asked(request)
        return route, {**body, "ignore_eos": request.sampling.seed == ENDLESS}


@dataclass
class Running:
    """A worker and its engine."""

    client: AsyncLLMServiceClient
    engine: VllmEngine

    async def is_running(self, *, at_least: int = 0, at_most: int = CROWD, within: float) -> float:
        """Wait until the engine counts so many running requests; the seconds that took."""
        began = time.monotonic()
        async with asyncio.timeout(within):
            while not ((load := self.engine.load()) and at_least <= load.running <= at_most):
                await asyncio.sleep(0.02)
        return time.monotonic() - began


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[Running]:
    """One worker with vLLM and the demo model, serving."""
    settings = LlmSettings(
        engine="vllm",
        engine_python=str(PYTHON),
        start_timeout_seconds=START_SECONDS,
        mesh_models=LAYOUT.models,
        max_output_tokens=4000,
        max_concurrent_requests=CROWD,
    )
    engine = EndlessVllm(settings)
    async with serve([make_capability(settings, engine)]) as worker:
        async with AsyncLLMServiceClient(worker.target) as client:
            async with asyncio.timeout(START_SECONDS):
                while engine.load() is None:
                    await asyncio.sleep(0.2)
            yield Running(client, engine)


def ask(text: str, **sampling: object) -> Generation:
    """A question, answered by the likeliest tokens."""
    chosen = Sampling(**{"temperature": 0.0, "max_tokens": 100, **sampling})  # type: ignore[arg-type] # test data
    return Generation(messages=(ChatMessage(Role.USER, text),), sampling=chosen)


async def test_it_says_what_it_is(running: Running) -> None:
    """Info names the engine, its version, the model and the context."""
    info = await running.client.info()
    assert info.engine == "vllm"
    assert info.engine_version[:1].isdigit()
    assert [(model.name, model.context_tokens) for model in info.models] == [("torch-isolation-mesh-demo", 4096)]


async def test_every_known_answer_comes_word_for_word(running: Running) -> None:
    """The whole page, many at once: a batch says what each would say alone."""

    async def answer(question: str) -> str:
        return (await running.client.complete(ask(question), deadline=Deadline.after(120))).text

    answers = await asyncio.gather(*(answer(entry["question"]) for entry in PAGE))
    assert answers == [entry["answer"] for entry in PAGE]


async def test_streams_side_by_side_are_each_whole(running: Running) -> None:
    """Each of 32 gets its own pieces in order, one Finish and its own usage."""
    entries = [PAGE[number % len(PAGE)] for number in range(STREAMS)]

    async def read(question: str) -> tuple[str, Finish]:
        events = [event async for event in running.client.generate(ask(question), deadline=Deadline.after(120))]
        finish = events[-1]
        assert isinstance(finish, Finish)
        return "".join(event.text for event in events if isinstance(event, Piece)), finish

    results = await asyncio.gather(*(read(entry["question"]) for entry in entries))
    assert [text for text, _ in results] == [entry["answer"] for entry in entries]
    for _, finish in results:
        assert finish.usage is not None
        assert finish.usage.prompt_tokens > 0
        assert finish.usage.completion_tokens > 0


@pytest.mark.parametrize("streams", [STREAMS, CROWD])
async def test_callers_who_leave_free_their_slots(running: Running, streams: int) -> None:
    """However many leave at once, the engine's own count falls to none within a second of it."""
    # Written to its end, this would take the engine minutes.
    request = ask("Who are you?", seed=ENDLESS, max_tokens=3500)

    async def read() -> None:
        async with aclosing(running.client.generate(request, deadline=Deadline.after(240))) as events:
            async for _ in events:
                pass

    readers = [asyncio.create_task(read()) for _ in range(streams)]
    await running.is_running(at_least=streams, within=120)
    assert not any(reader.done() for reader in readers)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await running.is_running(at_most=0, within=1.0)
    assert (await running.client.complete(ask(PAGE[0]["question"]))).text == PAGE[0]["answer"]


async def test_its_metrics_are_published_by_the_worker(running: Running) -> None:
    """What autoscalers and routers look for is there under vLLM's names, with the public name of the model."""
    families = {family.name: family for family in published()}
    for name in ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"):
        (sample,) = families[name].samples
        assert sample.labels["model_name"] == "torch-isolation-mesh-demo"
    assert "vllm:time_to_first_token_seconds" in families


async def test_the_prompt_is_counted_as_the_engine_counts_it(running: Running) -> None:
    """The count beforehand, which admission goes by, is the usage afterwards."""
    completion = await running.client.complete(ask("Who are you?"))
    asked = Asked(messages=(Message(Speaker.USER, "Who are you?"),))
    assert completion.usage is not None
    assert await running.engine.count(asked) == completion.usage.prompt_tokens
    assert (await running.engine.prepare(asked)).prompt_tokens == completion.usage.prompt_tokens


async def test_what_does_not_fit_is_refused_by_its_tokens(running: Running) -> None:
    """A prompt of more tokens than the context holds never reaches the engine."""
    before = counted("vllm:prompt_tokens")
    with pytest.raises(InvalidRequest) as caught:
        await running.client.complete(ask("word " * 5000))
    assert caught.value.reason == "CONTEXT_OVERFLOW"
    await asyncio.sleep(1.0)
    assert counted("vllm:prompt_tokens") - before < 1000  # the canary's few


def published() -> list[Metric]:
    """What a scrape of the worker finds."""
    return list(text_string_to_metric_families(generate_latest(REGISTRY).decode()))


def counted(family: str, **labels: str) -> float:
    """The sum of a family's samples with these labels."""
    return sum(
        sample.value
        for found in published()
        if found.name == family
        for sample in found.samples
        if not sample.name.endswith("_created") and labels.items() <= sample.labels.items()
    )
