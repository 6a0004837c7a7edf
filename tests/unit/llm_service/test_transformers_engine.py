"""``transformers serve`` is started on checked files, asked in its own way, and held to what the wire promises."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_service.engines.child import FRUITLESS_BEFORE_PROOF, engine_environment
from llm_service.engines.transformers import TransformersEngine, sampling_fields
from llm_service.generation import Ended, FinishReason, Generation, Message, Piece, Role, Sampling, Usage
from llm_service.settings import LlmSettings
from llm_service.testing import SpawningFake
from mesh.errors import Internal, InvalidRequest, ModelUnusable, Overloaded, Unavailable, WrongState
from mesh.testing import FakeClock


class FakeServe(SpawningFake):
    """Behaves like ``transformers serve`` 5.23: no [DONE], the stop string written out, usage in the last chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[dict[str, Any]] = []
        self.text = "one two three"
        self.silent_seconds = 0.0
        self.fails = False
        self.free = asyncio.Event()
        self.free.set()
        self.healthy = True
        self.clock = FakeClock()

    async def handle(self, request: httpx.Request) -> httpx.Response:
        """One answer, once the engine is ``free``; its health route answers also while it is not."""
        if request.url.path == "/health":
            if not self.healthy:
                await asyncio.Event().wait()
            return httpx.Response(200, json={"status": "ok"})
        await self.free.wait()
        if self.silent_seconds:
            self.clock.advance(self.silent_seconds)
            raise httpx.ReadTimeout("silent", request=request)
        if self.fails:
            return httpx.Response(500, text="CUDA error")
        body = json.loads(request.content)
        self.bodies.append(body)
        words = [message["content"] for message in body.get("messages", [])] or [body["prompt"]]
        prompt = sum(len(text.split()) for text in words) + 4 + len(words)
        pieces = [self.text[at : at + 3] for at in range(0, len(self.text), 3)]
        chunks: list[dict[str, Any]] = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
        usage = {"prompt_tokens": prompt, "completion_tokens": 3, "total_tokens": prompt + 3}
        chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage})
        return httpx.Response(200, text="".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks))


@pytest.fixture
async def make(model_path: Path) -> AsyncIterator[Callable[..., tuple[TransformersEngine, FakeServe]]]:
    """Makes engines on the tiny model, and stops them."""
    engines: list[TransformersEngine] = []

    def one(**settings: Any) -> tuple[TransformersEngine, FakeServe]:
        server = FakeServe()
        chosen = LlmSettings(**{"model": str(model_path), "max_output_tokens": 20, **settings})
        engine = TransformersEngine(
            chosen, transport=httpx.MockTransport(server.handle), spawn=server.spawn, clock=server.clock
        )
        engines.append(engine)
        return engines[-1], server

    yield one
    for engine in engines:
        await engine.stop()


Make = Callable[..., tuple[TransformersEngine, FakeServe]]


def chat(text: str, **sampling: Any) -> Generation:
    """A chat of one message."""
    return Generation(messages=(Message(Role.USER, text),), sampling=Sampling(**sampling))


async def test_it_starts_on_the_models_own_files(make: Make, model_path: Path) -> None:
    """The engine gets a local path and a loopback port, and has written before it counts as started."""
    engine, server = make()
    served = await engine.start()
    arguments = list(server.commands[0].arguments)
    assert (
        served.name,
        served.source,
        served.context_tokens,
        served.description,
    ) == ("tiny-chat", "path", 32, "A tiny model.")
    assert str(model_path) in arguments
    assert arguments[arguments.index("--host") + 1] == "127.0.0.1"
    assert all(body["model"] == str(model_path) for body in server.bodies)
    assert server.bodies


async def test_a_bad_model_never_reaches_the_engine(make: Make, model_path: Path) -> None:
    """A damaged model is found out before a process is started."""
    (model_path / "model.safetensors").write_bytes(b"broken")
    engine, server = make()
    with pytest.raises(ModelUnusable):
        await engine.start()
    assert server.commands == []


async def test_the_text_ends_before_the_stop_string(make: Make) -> None:
    """The engine writes the stop string out; the caller never sees it."""
    engine, _ = make()
    await engine.start()
    request = await engine.prepare(chat("word", stop=("two",)))
    events = [event async for event in engine.generate(request)]
    assert "".join(event.text for event in events if isinstance(event, Piece)) == "one "
    assert events[-1] == Ended.one(FinishReason.STOP, Usage(6, 3), stop="two")


async def test_what_was_held_back_comes_at_the_end(make: Make) -> None:
    """Text that only looked like the beginning of a stop string is not lost."""
    engine, _ = make()
    await engine.start()
    events = [event async for event in engine.generate(await engine.prepare(chat("word", stop=("three!",))))]
    assert "".join(event.text for event in events if isinstance(event, Piece)) == "one two three"


async def test_the_context_includes_what_the_template_adds(make: Make) -> None:
    """A prompt that only just fits gets the tokens that are left; one word more is refused."""
    engine, _ = make()
    await engine.start()
    # The fake template adds 4 tokens to a chat and 1 to a message; the context is 32.
    assert (await engine.prepare(chat("word " * 26))).sampling.max_tokens == 1
    with pytest.raises(InvalidRequest) as caught:
        await engine.prepare(chat("word " * 27))
    assert caught.value.reason == "CONTEXT_OVERFLOW"


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
async def test_what_the_engine_would_ignore_is_refused(make: Make, name: str) -> None:
    """A penalty that the engine cannot apply is refused by name; zero is no penalty."""
    engine, _ = make()
    await engine.start()
    with pytest.raises(WrongState) as caught:
        await engine.prepare(chat("word", **{name: 0.5}))
    assert caught.value.param == name
    await engine.prepare(chat("word", **{name: 0.0}))


async def test_a_model_without_a_template_only_continues(make: Make, model_path: Path) -> None:
    """Without a chat template chats are refused, and prompts are served."""
    (model_path / "chat_template.jinja").unlink()
    engine, server = make()
    await engine.start()
    with pytest.raises(WrongState):
        await engine.prepare(chat("word"))
    await engine.prepare(Generation(prompt="word"))
    assert all("prompt" in body for body in server.bodies)


async def test_an_engine_that_falls_silent_is_replaced(make: Make) -> None:
    """Silence while writing is Unavailable for the caller and the end of that engine."""
    engine, server = make(stall_seconds=120.0)
    await engine.start()
    server.silent_seconds = 240.0
    with pytest.raises(Unavailable):
        async for _ in engine.generate(await engine.prepare(chat("word"))):
            pass
    assert server.children[0].ended.done()
    failure = engine.unhealthy()
    assert failure is not None
    assert failure.reason == "ENGINE_RESTARTING"


async def test_a_request_that_waits_for_others_ends_no_engine(make: Make) -> None:
    """One whose time is up fails alone where the engine wrote for somebody else a moment ago."""
    engine, server = make(stall_seconds=120.0)
    await engine.start()
    server.silent_seconds = 1.0
    with pytest.raises(Unavailable) as caught:
        async for _ in engine.generate(await engine.prepare(chat("word"))):
            pass
    assert caught.value.reason == "ENGINE_STUCK"
    assert (server.children[0].ended.done(), engine.unhealthy()) == (False, None)


async def test_a_failed_canary_replaces_the_engine(make: Make) -> None:
    """An engine that cannot write one token any more is ended."""
    engine, server = make(watchdog_seconds=1.0)
    await engine.start()
    await engine.prove()
    server.fails = True
    with pytest.raises(Unavailable):
        await engine.prove()
    await asyncio.sleep(0)
    assert server.children[0].ended.done()


async def test_a_canary_behind_an_abandoned_request_is_no_failure(make: Make) -> None:
    """An engine that still computes for a caller who left is busy, and it is whole when it is done."""
    engine, server = make(watchdog_seconds=0.1, stall_seconds=30)
    await engine.start()
    server.free.clear()
    for _ in range(2):
        with pytest.raises(Overloaded):
            await engine.prove()
        server.clock.advance(15)
    server.free.set()
    await engine.prove()
    server.free.clear()
    server.clock.advance(15)
    with pytest.raises(Overloaded):  # what was waited for before the answer does not count
        await engine.prove()
    assert (engine.unhealthy(), server.children[0].ended.done()) == (None, False)


async def test_a_canary_unanswered_for_the_stall_time_replaces_the_engine(make: Make) -> None:
    """Busy has an end: an engine that writes nothing for as long as a request may wait is ended."""
    engine, server = make(watchdog_seconds=0.1, stall_seconds=30)
    await engine.start()
    server.free.clear()
    with pytest.raises(Overloaded):
        await engine.prove()
    server.clock.advance(30)
    with pytest.raises(Unavailable):
        await engine.prove()
    assert server.children[0].ended.done()


async def test_a_late_canary_and_a_silent_health_route_replace_the_engine(make: Make) -> None:
    """An engine that neither writes nor shows life is ended at once, before the watchdog would end the worker."""
    engine, server = make(watchdog_seconds=0.1)
    await engine.start()
    server.free.clear()
    server.healthy = False
    with pytest.raises(Unavailable):
        async with asyncio.timeout(5):
            await engine.prove()
    assert server.children[0].ended.done()


async def test_a_canary_of_an_engine_that_does_not_compute_replaces_it(make: Make) -> None:
    """A late engine whose health route answers is busy only while it uses processor time."""
    engine, server = make(watchdog_seconds=0.1)
    await engine.start()
    server.children[0].cpu = 5.0
    server.free.clear()
    with pytest.raises(Unavailable):
        await engine.prove()
    assert server.children[0].ended.done()


async def test_an_engine_that_fails_everybody_has_to_prove_itself(make: Make) -> None:
    """One request that fails fails alone; a row of them makes the engine prove itself, and then it is replaced."""
    engine, server = make()
    await engine.start()
    request = await engine.prepare(chat("word"))

    async def fail() -> None:
        with pytest.raises(Internal):
            async for _ in engine.generate(request):
                pass
        for _ in range(50):
            await asyncio.sleep(0)

    server.fails = True
    for _ in range(FRUITLESS_BEFORE_PROOF - 1):
        await fail()
    assert engine.unhealthy() is None
    await fail()
    failure = engine.unhealthy()
    assert failure is not None
    assert "canary" in failure.message


async def test_requests_that_are_at_fault_themselves_cost_the_engine_nothing(make: Make) -> None:
    """However many fail, an engine that proves itself stays."""
    engine, server = make()
    await engine.start()
    request = await engine.prepare(chat("word"))
    for _ in range(3 * FRUITLESS_BEFORE_PROOF):
        server.fails = True
        with pytest.raises(Internal):
            async for _ in engine.generate(request):
                pass
        server.fails = False
        for _ in range(50):
            await asyncio.sleep(0)
    assert (engine.unhealthy(), server.children[0].ended.done()) == (None, False)


@pytest.mark.parametrize(
    ("sampling", "configuration"),
    [
        (Sampling(), None),
        (Sampling(temperature=0.0), {"do_sample": False}),
        (Sampling(temperature=0.0, top_p=0.5), {"do_sample": False}),
        (Sampling(temperature=0.8), {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0}),
        (Sampling(top_p=0.5), {"do_sample": True, "temperature": 1.0, "top_p": 0.5, "top_k": 0}),
    ],
)
def test_sampling_is_asked_for_where_the_engine_heeds_it(
    sampling: Sampling, configuration: dict[str, Any] | None
) -> None:
    """Temperature and top_p go into the generation configuration; unset ones stay the model's own."""
    body = sampling_fields(sampling, {"top_p": 0.95})
    sent = json.loads(body["generation_config"]) if "generation_config" in body else None
    assert configuration == sent


def test_seed_and_stops_are_passed_on() -> None:
    """Seed 0 is a seed, and stops are a list."""
    body = sampling_fields(Sampling(seed=0, stop=("a", "b"), max_tokens=5), {})
    assert body == {"max_tokens": 5, "seed": 0, "stop": ["a", "b"]}


def test_the_engine_inherits_no_secrets() -> None:
    """Our settings, keys and hub tokens stay here, and the engine never asks the hub."""
    inherited = engine_environment(
        {"PATH": "/bin", "LLM_ENGINE_API_KEY": "k", "GATEWAY_API_KEYS": "k", "HF_TOKEN": "k"}
    )
    assert "k" not in inherited.values()
    assert (inherited["PATH"], inherited["HF_HUB_OFFLINE"]) == ("/bin", "1")
