"""An OpenAI-compatible server that somebody else runs is waited for, asked as it expects, and never restarted."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from pydantic import SecretStr

from llm_service.engines.openai import LIST_SECONDS, OpenAIEngine
from llm_service.generation import Ended, FinishReason, Generation, Message, Piece, Role, Sampling, Usage
from llm_service.settings import LlmSettings
from mesh.errors import ModelUnusable


class FakeServer:
    """Answers like an OpenAI-compatible server; ``failures`` are raised or answered first."""

    def __init__(self, *models: str) -> None:
        self.models = models
        self.failures: list[httpx.Response | Exception] = []
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []
        self.pauses_that_end = asyncio.Semaphore(0)

    def handle(self, request: httpx.Request) -> httpx.Response:
        """One answer."""
        self.requests.append(request)
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": name, "max_model_len": 4096} for name in self.models]})
        chunks = [
            {"choices": [{"delta": {"content": "Yes."}}]},
            {"choices": [{"delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}},
        ]
        return httpx.Response(
            200, text="".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        )

    async def sleep(self, seconds: float) -> None:
        """A pause that takes no time, for as many as may end."""
        self.pauses.append(seconds)
        await self.pauses_that_end.acquire()

    async def let_pass(self, pauses: int) -> None:
        """End so many pauses, one after another."""
        for _ in range(pauses):
            self.pauses_that_end.release()
            for _ in range(50):
                await asyncio.sleep(0)

    def engine(self, model: str = "demo", key: str = "") -> OpenAIEngine:
        """An engine in front of this server."""
        settings = LlmSettings(
            engine="openai",
            engine_url="http://engine/v1/",
            model=model,
            engine_api_key=SecretStr(key),
            max_output_tokens=50,
        )
        return OpenAIEngine(settings, transport=httpx.MockTransport(self.handle), sleep=self.sleep)


async def test_the_only_model_is_found() -> None:
    """Without LLM_MODEL, the one model that the server has is served, with its context."""
    served = await FakeServer("the-one").engine().start()
    assert (served.name, served.source, served.context_tokens) == ("the-one", "remote", 4096)


@pytest.mark.parametrize(("models", "wanted"), [(("a", "b"), "demo"), ((), "demo"), (("a", "b"), "c")])
async def test_an_unclear_choice_is_the_operators(models: tuple[str, ...], wanted: str) -> None:
    """Several models, none, or another one: the operator has to name it."""
    with pytest.raises(ModelUnusable, match="LLM_MODEL"):
        await FakeServer(*models).engine(wanted).start()


async def test_a_server_that_is_not_up_yet_is_waited_for() -> None:
    """The worker waits with growing pauses for a server that others start."""
    server = FakeServer("a")
    server.pauses_that_end = asyncio.Semaphore(4)
    server.failures = [httpx.ConnectError("no"), httpx.Response(503), httpx.Response(500), httpx.ReadTimeout("no")]
    assert (await server.engine().start()).name == "a"
    assert server.pauses[:4] == [0.5, 1.0, 2.0, 4.0]


async def test_wrong_credentials_are_not_waited_out() -> None:
    """A refused key needs an operator, not patience."""
    server = FakeServer("a")
    server.failures = [httpx.Response(401)]
    with pytest.raises(ModelUnusable, match="LLM_ENGINE_API_KEY"):
        await server.engine().start()


async def test_a_server_without_a_list_takes_the_named_model() -> None:
    """A server without /models serves what LLM_MODEL says."""
    server = FakeServer()
    server.failures = [httpx.Response(404)]
    assert (await server.engine("named").start()).name == "named"


async def test_only_what_was_asked_is_sent() -> None:
    """Set values are sent, unset ones are left to the engine, and the key is in the header."""
    server = FakeServer("a")
    engine = server.engine(key="secret")
    await engine.start()
    request = Generation(messages=(Message(Role.USER, "Is it?"),), sampling=Sampling(temperature=0.0, stop=("\n",)))
    events = [event async for event in engine.generate(await engine.prepare(request))]
    assert [Piece("Yes."), Ended.one(FinishReason.STOP, Usage(4, 2))] == events[1:]
    sent = server.requests[-1]
    assert json.loads(sent.content) == {
        "model": "a",
        "messages": [{"role": "user", "content": "Is it?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "max_tokens": 50,
        "stop": ["\n"],
    }
    assert (str(sent.url), sent.headers["authorization"]) == ("http://engine/v1/chat/completions", "Bearer secret")


async def test_its_canary_costs_nothing() -> None:
    """The canary asks the engine for nothing, the pulse for the list of models, and its metrics are asked for once."""
    server = FakeServer("a")
    engine = server.engine()
    await engine.start()
    await engine.prove()
    await server.let_pass(3)
    asked = [(request.method, request.url.path) for request in server.requests]
    assert set(asked) == {("GET", "/v1/models"), ("GET", "/metrics")}
    assert asked.count(("GET", "/metrics")) == 1
    assert len(server.requests) == 5
    await engine.stop()


async def test_a_lost_engine_is_told_and_served_again_when_it_is_back() -> None:
    """One answer that goes lost is nothing; two make the engine unhealthy within 10 s, until it answers again."""
    server = FakeServer("a")
    engine = server.engine()
    await engine.start()
    server.failures = [httpx.ConnectError("no"), httpx.ReadTimeout("no")]
    await server.let_pass(1)
    seen = [engine.unhealthy()]
    await server.let_pass(1)
    seen.append(engine.unhealthy())
    await server.let_pass(1)
    seen.append(engine.unhealthy())
    await engine.stop()
    assert seen[0] is seen[2] is None
    assert seen[1] is not None
    assert seen[1].reason == "ENGINE_UNREACHABLE"
    assert sum(server.pauses[:2]) + 2 * LIST_SECONDS < 10


async def test_the_watch_over_the_engine_survives_what_nobody_foresaw() -> None:
    """An unknown error while the engine is asked ends neither the watch nor the service."""
    server = FakeServer("a")
    engine = server.engine()
    await engine.start()
    server.failures = [RuntimeError("unforeseen"), httpx.ConnectError("no"), httpx.ConnectError("no")]
    await server.let_pass(3)
    assert engine.unhealthy() is not None
    await engine.stop()
