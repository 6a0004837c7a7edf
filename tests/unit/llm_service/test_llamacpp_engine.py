"""llama.cpp is started on one file, asked for one thing at a time, and told what its server would do otherwise."""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_service.abilities import Ability
from llm_service.engines.llamacpp import LlamaCppEngine
from llm_service.generation import Accepted, Ended, FinishReason, Generation, Message, Piece, Role, Sampling, Usage
from llm_service.process import Command
from llm_service.settings import LlmSettings
from mesh.errors import Internal, InvalidRequest, Unavailable, WrongState
from mesh.generation import ResponseFormat, Tool, ToolCall, ToolCallDelta, ToolChoice, ToolChoiceMode
from tests.unit.llm_service.fake_llamacpp import FakeLlamaCpp

CONTEXT = 64
TOOL = Tool("weather", "Tells it.", '{"type": "object", "properties": {"city": {"type": "string"}}}')


Make = Callable[..., tuple[LlamaCppEngine, FakeLlamaCpp]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes engines on a file of a name only, and stops them."""
    (tmp_path / "tiny-Q4_0.gguf").touch()
    engines: list[LlamaCppEngine] = []

    def one(*, template: bool = True, **settings: Any) -> tuple[LlamaCppEngine, FakeLlamaCpp]:
        python, server = tmp_path / "python", FakeLlamaCpp()
        library = {"version": "0.3.36", "variables": ["host", "model", "seed", "api_key", "config_file"]}
        seen = {"context_tokens": CONTEXT, "has_chat_template": template, "longest_token": 8}
        python.write_text(f"#!/bin/sh\necho '{json.dumps(library)}'\necho '{json.dumps(seen)}'\n")
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        given = {"engine_python": str(python), "local_models_path": tmp_path, "max_output_tokens": 20}
        engine = LlamaCppEngine(
            LlmSettings(engine="llamacpp", **{**given, **settings}),
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


def calling(mode: ToolChoiceMode | None, *tools: Tool, name: str = "") -> Generation:
    """A chat with tools."""
    choice = None if mode is None else ToolChoice(mode, name)
    return replace(chat("word"), tools=tools, tool_choice=choice)


def value_of(command: Command, option: str) -> str:
    """The last value of an option, which is the one that counts."""
    arguments = list(command.arguments)
    return arguments[len(arguments) - arguments[::-1].index(option)]


async def written(engine: LlamaCppEngine, request: Generation) -> list[Any]:
    """All events of an answer."""
    return [event async for event in engine.generate(await engine.prepare(request))]


async def test_the_server_is_started_on_the_file(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reachable from this machine alone, with the model's own template, and deaf to variables that are not its own."""
    for name in ("HOST", "Seed", "CONFIG_FILE", "API_KEY", "PATH"):
        monkeypatch.setenv(name, "/bin")
    engine, server = make()
    served = await engine.start()
    (command,) = server.commands
    assert (served.name, served.source, served.context_tokens) == ("tiny-Q4_0", "path", CONTEXT)
    assert (engine.version(), engine.concurrency) == ("0.3.36", 1)
    assert value_of(command, "-m") == "llama_cpp.server"
    assert value_of(command, "--model") == str(tmp_path / "tiny-Q4_0.gguf")
    assert value_of(command, "--host") == "127.0.0.1"
    assert value_of(command, "--interrupt_requests") == "false"
    assert value_of(command, "--chat_format") == "chat_template.default"
    assert (value_of(command, "--n_ctx"), value_of(command, "--n_gpu_layers")) == (str(CONTEXT), "-1")
    assert command.environment["PATH"] == "/bin"
    assert not {"HOST", "Seed", "CONFIG_FILE"} & command.environment.keys()


async def test_nobody_else_is_answered(make: Make) -> None:
    """The key is another one for each worker, and stands in no argument, which everybody on the machine can read."""
    (engine, server), (other, its) = make(), make()
    await engine.start()
    await other.start()
    key = server.commands[0].environment["API_KEY"]
    assert len(key) > 30
    assert key != its.commands[0].environment["API_KEY"]
    assert key not in server.commands[0].arguments


async def test_the_gpu_gets_the_layers_that_were_named(make: Make) -> None:
    """On the device that was named, and none where the processor was."""
    engine, server = make(device="cuda:1", local_model_gpu_layers=20)
    await engine.start()
    assert value_of(server.commands[0], "--n_gpu_layers") == "20"
    assert server.commands[0].environment["CUDA_VISIBLE_DEVICES"] == "1"
    engine, server = make(device="cpu", local_model_gpu_layers=20)
    await engine.start()
    assert value_of(server.commands[0], "--n_gpu_layers") == "0"


async def test_the_operators_arguments_stand_above_ours(make: Make) -> None:
    """They come last; the ones for probabilities and templates are heeded here too."""
    engine, server = make(template=False, engine_arguments="--n_ctx 32 --logits_all true --chat_format chatml")
    await engine.start()
    assert value_of(server.commands[0], "--n_ctx") == "32"
    assert Ability.LOGPROBS in engine.abilities
    assert (await engine.prepare(chat("word"))).sampling.max_tokens == 20
    engine, _ = make(engine_arguments="--logits_all=0")
    assert Ability.LOGPROBS not in engine.abilities


async def test_the_prompt_is_read_before_anything_is_written(make: Make) -> None:
    """The first event has the prompt's tokens as the server counts them, the last one those that were written too."""
    engine, server = make()
    await engine.start()
    events = await written(engine, chat("word word", temperature=0.0, top_k=3, repetition_penalty=1.2, seed=7))
    assert events[0] == Accepted(Usage(7, 0))
    assert [event.text for event in events if isinstance(event, Piece)] == ["one", " two", " three"]
    assert events[-1] == Ended.one(FinishReason.STOP, Usage(7, 3))
    read, answered = server.bodies[-2:]
    assert (read.get("stream"), read["max_tokens"], answered["stream"], answered["max_tokens"]) == (None, 1, True, 20)
    wanted = {"temperature": 0.0, "top_k": 3, "repeat_penalty": 1.2, "seed": 7, "model": "tiny-Q4_0"}
    assert wanted.items() <= answered.items()
    assert {name for name in answered if answered[name] != read.get(name)} == {"stream", "max_tokens"}


async def test_what_is_not_asked_for_is_neutral(make: Make) -> None:
    """The server's own temperature, penalties and one same seed for all do not slip in."""
    engine, server = make()
    await engine.start()
    await written(engine, chat("word"))
    first = server.bodies[-1]
    await written(engine, chat("word"))
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
    assert neutral.items() <= first.items()
    assert first["seed"] != server.bodies[-1]["seed"]


@pytest.mark.parametrize("seed", [-1, 2**63 - 1, 2**32 - 1])
async def test_a_seed_is_one_that_the_server_takes(make: Make, seed: int) -> None:
    """32 bits, and never the one that means another each time."""
    engine, server = make()
    await engine.start()
    await written(engine, chat("word", seed=seed))
    assert 0 <= server.bodies[-1]["seed"] < 2**32 - 1


async def test_a_stop_string_ends_the_answer_and_is_named(make: Make) -> None:
    """Wherever the pieces are cut; the server is not asked to look for it."""
    engine, server = make()
    await engine.start()
    events = await written(engine, chat("word", stop=("o t",)))
    assert "".join(event.text for event in events if isinstance(event, Piece)) == "one tw"
    assert events[-1] == Ended.one(FinishReason.STOP, Usage(6, 3), stop="o t")
    assert "stop" not in server.bodies[-1]


async def test_a_named_tool_is_called(make: Make) -> None:
    """Its name comes once; what is whole JSON ends as a call."""
    engine, server = make()
    await engine.start()
    server.words = ['{"city"', ': "Ulm"}']
    for request in (
        calling(ToolChoiceMode.NAMED, TOOL, Tool("other"), name="weather"),
        calling(ToolChoiceMode.REQUIRED, TOOL),
    ):
        events = await written(engine, request)
        deltas = [event.tool_calls for event in events if isinstance(event, Piece)]
        assert deltas == [(ToolCallDelta(0, "call_1", "weather", '{"city"'),), (ToolCallDelta(0, "", "", ': "Ulm"}'),)]
        assert events[-1] == Ended.one(FinishReason.TOOL_CALLS, Usage(6, 2))
        assert server.bodies[-1]["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


async def test_a_call_that_was_cut_off_says_so(make: Make) -> None:
    """The server ends it like a whole one."""
    engine, server = make()
    await engine.start()
    server.words = ['{"city"']
    events = await written(engine, calling(ToolChoiceMode.REQUIRED, TOOL))
    assert events[-1].reason is FinishReason.LENGTH


async def test_tools_that_must_not_be_called_are_not_shown(make: Make) -> None:
    """The conversation about earlier calls is."""
    engine, server = make()
    await engine.start()
    call = Message(Role.ASSISTANT, tool_calls=(ToolCall("c1", "weather", "{}"),))
    request = calling(ToolChoiceMode.NONE, TOOL)
    await written(
        engine, replace(request, messages=(*request.messages, call, Message(Role.TOOL, "sun", tool_call_id="c1")))
    )
    assert not {"tools", "tool_choice"} & server.bodies[-1].keys()
    called = server.bodies[-1]["messages"][1]
    assert (called["content"], called["tool_calls"][0]["function"]["name"]) == ("", "weather")


async def test_json_is_asked_for_in_the_servers_terms(make: Make) -> None:
    """A schema goes with the type that it knows; what it would drop is refused."""
    engine, server = make()
    await engine.start()
    await written(engine, replace(chat("word"), response_format=ResponseFormat(TOOL.parameters, "r")))
    assert server.bodies[-1]["response_format"] == {"type": "json_object", "schema": json.loads(TOOL.parameters)}
    await written(engine, replace(chat("word"), response_format=ResponseFormat()))
    assert server.bodies[-1]["response_format"] == {"type": "json_object"}
    dropped = '{"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}}'
    for request, param in (
        (replace(chat("word"), response_format=ResponseFormat(dropped, "r")), "response_format"),
        (calling(ToolChoiceMode.REQUIRED, replace(TOOL, parameters=dropped)), "tools"),
    ):
        with pytest.raises(InvalidRequest, match="minimum") as caught:
            await engine.prepare(request)
        assert (caught.value.reason, caught.value.param) == ("INVALID_JSON_SCHEMA", param)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (calling(None, TOOL), "tool_choice"),
        (calling(ToolChoiceMode.AUTO, TOOL), "tool_choice"),
        (calling(ToolChoiceMode.REQUIRED, TOOL, Tool("other")), "tool_choice"),
        (Generation(prompt="word", response_format=ResponseFormat()), "response_format"),
    ],
)
async def test_what_it_cannot_do_is_refused_with_an_engine_that_can(
    make: Make, request_: Generation, param: str
) -> None:
    """By the field that asks for it, before the server hears of it."""
    engine, server = make()
    await engine.start()
    before = len(server.bodies)
    with pytest.raises(WrongState, match="LLM_ENGINE=vllm") as caught:
        await engine.prepare(request_)
    assert (caught.value.reason, caught.value.param) == ("UNSUPPORTED_BY_ENGINE", param)
    assert len(server.bodies) == before


async def test_texts_in_parts_become_one(make: Make) -> None:
    """Templates of small models know nothing else."""
    engine, server = make()
    await engine.start()
    await written(engine, Generation(messages=(Message(Role.USER, parts=("one", "two")),)))
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "one\ntwo"}]


async def test_a_model_without_a_template_continues_prompts_alone(make: Make) -> None:
    """It is proved by a prompt, and no other model's template is put in place of its own."""
    engine, server = make(template=False)
    await engine.start()
    assert "--chat_format" not in server.commands[0].arguments
    assert [sorted(body.keys() & {"prompt", "messages"}) for body in server.bodies] == [["prompt"], ["prompt"]]
    with pytest.raises(WrongState) as caught:
        await engine.prepare(chat("word"))
    assert caught.value.reason == "NO_CHAT_TEMPLATE"
    assert (await written(engine, Generation(prompt="word word")))[0] == Accepted(Usage(2, 0))


async def test_tokens_are_counted_without_writing(make: Make) -> None:
    """What the template adds was measured at the start: here 4 to a chat and 1 to a message."""
    engine, server = make()
    await engine.start()
    before = len(server.bodies)
    two = Generation(messages=(Message(Role.USER, "word word"), Message(Role.ASSISTANT, "word")))
    assert (await engine.count(chat("word word")), await engine.count(two)) == (7, 9)
    assert await engine.count(Generation(prompt="word word")) == 2
    assert len(server.bodies) == before


async def test_what_can_never_fit_is_refused_by_its_length(make: Make) -> None:
    """Ten megabytes are not tokenized one by one, neither to be answered nor to be counted."""
    engine, server = make()
    await engine.start()
    before = len(server.bodies)
    for request in (chat("x" * 10_000_000), Generation(prompt="x" * (CONTEXT * 8 + 1))):
        for refused in (engine.prepare, engine.count):
            with pytest.raises(InvalidRequest) as caught:
                await refused(request)
            assert caught.value.reason == "CONTEXT_OVERFLOW"
    assert len(server.bodies) == before


async def test_what_does_not_fit_is_the_servers_to_say(make: Make) -> None:
    """A status in place of a stream that breaks off."""
    engine, server = make()
    await engine.start()
    said = {"message": "This model's maximum context length is 64 tokens, however you requested 99 tokens"}
    server.refuses = httpx.Response(400, json={"error": {**said, "code": "context_length_exceeded"}})
    with pytest.raises(InvalidRequest) as caught:
        await written(engine, chat("word"))
    assert caught.value.reason == "CONTEXT_OVERFLOW"
    server.refuses = httpx.Response(500, json={"error": {"message": "Conversation roles must alternate"}})
    with pytest.raises(Internal) as failed:
        await written(engine, chat("word"))
    assert "alternate" not in failed.value.message


async def test_an_engine_that_falls_silent_over_a_prompt_is_replaced(make: Make) -> None:
    """Though nothing of the answer's stream was asked for yet."""
    engine, server = make(stall_seconds=120.0)
    await engine.start()
    server.silent_seconds = 240.0
    with pytest.raises(Unavailable) as caught:
        await written(engine, chat("word"))
    assert caught.value.reason == "ENGINE_STUCK"
    assert "stream" not in server.bodies[-1]
    assert server.children[0].ended.done()


async def test_an_idle_engine_keeps_the_conversation_it_holds(make: Make) -> None:
    """It shows a sign of life and writes nothing; after a failure, or where it shows none, it has to write."""
    engine, server = make()
    await engine.start()
    wrote, counted = len(server.bodies), server.counted
    await engine.prove()
    assert (len(server.bodies), server.counted) == (wrote, counted + 1)
    server.counts_nothing = True
    await engine.prove()
    assert len(server.bodies) == wrote + 2
    server.counts_nothing, server.refuses = False, httpx.Response(500)
    with pytest.raises(Internal):
        await written(engine, chat("word"))
    server.refuses, wrote = None, len(server.bodies)
    await engine.prove()
    assert len(server.bodies) == wrote + 2


async def test_a_stream_that_breaks_off_is_no_end(make: Make) -> None:
    """What was written until then was, and then comes the error."""
    engine, server = make()
    await engine.start()
    server.breaks_off = True
    texts = []
    with pytest.raises(Unavailable) as caught:
        async for event in engine.generate(await engine.prepare(chat("word"))):
            texts += [event.text] if isinstance(event, Piece) else []
    assert (texts, caught.value.reason) == (["one", " two", " three"], "ENGINE_LOST")
