"""llama.cpp as a child process, by ``python -m llama_cpp.server``: quantised GGUF files, on CPUs and small GPUs.

What that server does otherwise than its OpenAI shape says, and what is done about it here (measured with 0.3.36):

- a stream tells no usage, and what fails before its first token only breaks it off. So the same request goes first
  without a stream, for one token: that has a usage, and a status. The stream then finds the prompt read already.
- a new request ends the one that runs, as if it were whole. That is turned off; there is one at a time, and a lock.
- all that touches the model waits for that lock, its list of models too. Its page of documentation does not.
- it samples by values of its own where none are sent, and by the same seed each time. All of them are sent.
- it does not tell which stop string it met, so `StopCutter` looks for them, and leaves.
- a JSON schema that its grammar cannot express becomes any JSON, in silence. `require_grammar` refuses it first.
- a tool is called where one is named, by a grammar; whether to call one it cannot decide. Each piece of a call repeats
  the tool's name, and a call that was cut off ends like a whole one.
- it answers whoever reaches its port, web pages too. It is given a key, which only this process knows.
- it takes settings from variables such as ``HOST``, ``MODEL`` and ``SEED``. It inherits none that it would read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import secrets
import shlex
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import httpx

from llm_service.abilities import Ability
from llm_service.engines import Served
from llm_service.engines.child import ChildEngine, Spawn, engine_environment, free_port
from llm_service.engines.completions import context_overflow, input_of, options_of, refusal
from llm_service.generation import (
    Accepted,
    Ended,
    EngineEvent,
    FinishReason,
    Generation,
    Message,
    Piece,
    Role,
    Sampling,
    Usage,
)
from llm_service.gguf import GgufModel
from llm_service.grammar import require_grammar
from llm_service.process import Command, EngineProcess
from llm_service.settings import LlmSettings
from llm_service.stops import StopCutter
from mesh.clock import Clock, monotonic
from mesh.errors import Internal, MeshError, Unavailable, WrongState
from mesh.generation import Tool, ToolChoice, ToolChoiceMode

LONGEST_CONTEXT = 8192
"""Unless the settings name one: its whole cache is laid out at the start, and models name contexts of 128 Ki."""
SIGN_OF_LIFE_SECONDS = 1.0
_ABILITIES = frozenset({
    Ability.TOOLS, Ability.JSON_OBJECT, Ability.JSON_SCHEMA, Ability.TOP_K, Ability.MIN_P, Ability.REPETITION_PENALTY,
})  # fmt: skip
# Where nothing is asked for, nothing is done to what the model says; the server's own values differ.
_NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
_MOST_SEED = 0xFFFFFFFF  # itself it means: another one each time
_YES = {"1", "on", "t", "true", "y", "yes"}
_NOISE = re.compile(r'^INFO: .* "(GET|POST) /|^[Dd]isconnected')


class LlamaCppEngine(ChildEngine):
    """A supervised llama.cpp server that holds one model."""

    name = "llamacpp"
    concurrency = 1
    _health_route = "/docs"
    _tells_usage = False

    def __init__(
        self,
        settings: LlmSettings,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        spawn: Spawn = EngineProcess.spawn,
        clock: Clock = monotonic,
    ) -> None:
        super().__init__(settings, transport=transport, spawn=spawn, clock=clock)
        self._python = settings.engine_python or sys.executable
        self._options = shlex.split(settings.engine_arguments)
        told = _told(self._options)
        self._format = told.chat_format
        # Probabilities cost a number for each word of the vocabulary and token of the context: on demand only.
        self.abilities = _ABILITIES | ({Ability.LOGPROBS} if told.logits_all.lower() in _YES else set())
        self._template_tokens = (0, 0)
        self._key = secrets.token_urlsafe(32)
        self._client.headers["Authorization"] = f"Bearer {self._key}"

    async def _find(self) -> Served:
        settings = self._settings
        self._model = await GgufModel.find(settings.model, folder=settings.gguf_folder, python=self._python)
        self._context = settings.context_tokens or min(self._model.context_tokens, LONGEST_CONTEXT)
        return Served(name=self._model.name, source="path", context_tokens=self._context)

    async def prepare(self, request: Generation) -> Generation:
        """The request as the server can take it, ``max_tokens`` set.

        Raises:
            InvalidRequest: reason CONTEXT_OVERFLOW or INVALID_JSON_SCHEMA.
            WrongState: a chat for a model without a chat template, JSON for a prompt, or a tool that is not named.
        """
        self._require_template(request)
        self._require_room(request)
        if request.prompt is not None and request.response_format is not None:
            raise _unable("hold what continues a prompt to JSON; send a chat, or have", "response_format")
        if request.response_format is not None and request.response_format.schema:
            require_grammar(request.response_format.schema, "response_format")
        request = replace(request, parallel_tool_calls=None, **_tool_to_call(request))
        wanted = request.sampling.max_tokens or self._settings.max_output_tokens
        return replace(request, sampling=replace(request.sampling, max_tokens=wanted))

    async def count(self, request: Generation) -> int:
        """Tokens of the prompt, what the chat template adds as measured at the start; waits for what runs.

        Raises:
            InvalidRequest: reason CONTEXT_OVERFLOW.
            WrongState: a chat for a model without a chat template.
            Unavailable: the engine does not answer.
        """
        self._require_template(request)
        self._require_room(request)
        counted = await self._tokens("\n".join(request.texts))
        if request.prompt is not None:
            return counted
        per_chat, per_message = self._template_tokens
        return counted + per_chat + per_message * len(request.messages)

    async def prove(self) -> None:
        """Show a sign of life; after a request that failed, write. Raises MeshError, and restarts what cannot.

        What an idle engine writes pushes out the conversation that it holds, and the next turn reads all of it again.
        """
        if not self._fruitless:
            with suppress(MeshError, TimeoutError):
                async with asyncio.timeout(SIGN_OF_LIFE_SECONDS):
                    await self._tokens("a")  # behind the lock, like all that computes
                    return
        await super().prove()

    def version(self) -> str:
        """The version of llama-cpp-python in the engine's environment."""
        return self._model.version

    def _command(self) -> Command:
        settings, model, port = self._settings, self._model, free_port()
        self._base = f"http://127.0.0.1:{port}"
        layers = 0 if settings.device == "cpu" else settings.local_model_gpu_layers
        arguments = [self._python, "-P", "-m", "llama_cpp.server", "--host", "127.0.0.1", "--port", str(port)]
        arguments += ["--model", str(model.path), "--model_alias", model.name, "--n_ctx", str(self._context)]
        arguments += ["--n_gpu_layers", str(layers), "--logits_all", "false", "--verbose", "false"]
        # Penalties look back at the whole answer, and not at its last 64 tokens.
        arguments += ["--interrupt_requests", "false", "--last_n_tokens_size", str(self._context)]
        if model.has_chat_template:
            # Its own. Left to guess, the server takes a likeness of it, which knows of no tools.
            arguments += ["--chat_format", "chat_template.default"]
        # The operator's come last: the last of two values counts.
        return Command([*arguments, *self._options], self._environment(os.environ), _NOISE)

    def _environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        kept = engine_environment(environ)
        kept = {name: value for name, value in kept.items() if name.lower() not in self._model.variables}
        _, _, number = self._settings.device.partition(":")
        # By a variable: arguments are for all on this machine to read.
        return {**kept, **({"CUDA_VISIBLE_DEVICES": number} if number else {}), "API_KEY": self._key}

    def _asked(self, request: Generation) -> tuple[str, dict[str, Any]]:
        route, body = input_of(request)
        options = options_of(request)
        options.pop("stop", None)
        if (penalty := options.pop("repetition_penalty", None)) is not None:
            options["repeat_penalty"] = penalty
        seed = request.sampling.seed
        options["seed"] = (secrets.randbits(31) if seed is None else seed) % _MOST_SEED
        if wanted := body.get("response_format"):
            schema = wanted.get("json_schema", {}).get("schema")
            body["response_format"] = {"type": "json_object", **({"schema": schema} if schema else {})}
        for message in body.get("messages", ()):
            message["content"] = message["content"] or ""  # the server takes no null
        return route, {**_NEUTRAL, **options, **body, "model": self._model.name}

    async def _ask(self, request: Generation) -> AsyncGenerator[EngineEvent, None]:
        """The prompt read, then what is written, up to the stop string; the pieces are counted as tokens.

        A character that takes several tokens comes as one piece, and counts as one.
        """
        prompt = await self._read_prompt(request)
        yield Accepted(Usage(prompt, 0))
        cutter, tokens = StopCutter(request.sampling.stop), 0
        called, call = False, ""
        async with aclosing(super()._ask(request)) as written:
            async for event in written:
                match event:
                    case Piece(tool_calls=(delta, *_)):
                        if not called or delta.arguments:
                            tokens += 1
                            yield replace(event, tool_calls=(replace(delta, id="", name="") if called else delta,))
                        called, call = True, call + delta.arguments
                    case Piece(text):
                        tokens += 1
                        passed = cutter.feed(text)
                        if passed or event.logprobs:
                            yield replace(event, text=passed)
                        if cutter.met:
                            yield Ended.one(FinishReason.STOP, Usage(prompt, tokens), stop=cutter.met)
                            return
                    case Ended():
                        if rest := cutter.rest():
                            yield Piece(rest)
                        reason = FinishReason.LENGTH if called and not _is_json(call) else event.reason
                        yield Ended.one(reason, Usage(prompt, tokens))

    async def _read_prompt(self, request: Generation) -> int:
        """Have the engine read the prompt and write one token; returns the prompt's tokens. Raises MeshError."""
        route, body = self._asked(request)
        body = {name: value for name, value in body.items() if name not in {"logprobs", "top_logprobs"}}
        with self._owing():
            said = await self._post(f"/v1{route}", {**body, "max_tokens": 1})
            self._silence.heard()
        return int(said["usage"]["prompt_tokens"])

    async def _tokens(self, text: str) -> int:
        return int((await self._post("/extras/tokenize/count", {"input": text}))["count"])

    async def _post(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            answer = await self._client.post(self._base + route, json=body)
        except httpx.ReadTimeout:
            raise Unavailable("The engine fell silent.", reason="ENGINE_STUCK", retry_after=5.0) from None
        except httpx.HTTPError:
            raise Unavailable("The engine does not answer.", reason="ENGINE_UNREACHABLE", retry_after=1.0) from None
        if answer.status_code != httpx.codes.OK:
            raise refusal(answer.status_code, answer.content[:20_000], answer.headers)
        said: dict[str, Any] = answer.json()
        return said

    def _proof(self) -> Generation:
        return _chat("a") if self._answers_chats else super()._proof()

    async def _warm_up(self) -> None:
        await super()._warm_up()
        if self._answers_chats:
            self._template_tokens = await self._measure_template()

    async def _measure_template(self) -> tuple[int, int]:
        """Tokens that the template adds to a chat, and to each of its messages."""
        added: list[int] = []
        for request in (_chat("a"), _chat("a", "b", "a")):
            with suppress(Internal):  # a template may refuse a made-up chat
                added.append(await self._read_prompt(request) - await self._tokens("\n".join(request.texts)))
        per_message = max(0, -(-(added[1] - added[0]) // 2)) if len(added) == 2 else 0
        return (added[0] - per_message if added else 0), per_message

    @property
    def _answers_chats(self) -> bool:
        return self._model.has_chat_template or bool(self._format)

    def _require_template(self, request: Generation) -> None:
        if request.prompt is None and not self._answers_chats:
            raise WrongState(
                "This model has no chat template, so it answers no chats; send a prompt to continue instead.",
                reason="NO_CHAT_TEMPLATE",
                param="messages",
            )

    def _require_room(self, request: Generation) -> None:
        """Refuse what cannot fit by its length alone; the rest is for the engine to count."""
        if sum(map(len, request.texts)) > self._context * self._model.longest_token:
            raise context_overflow()


def _chat(*texts: str) -> Generation:
    roles = (Role.USER, Role.ASSISTANT)
    messages = tuple(Message(roles[index % 2], text) for index, text in enumerate(texts))
    return Generation(messages=messages, sampling=Sampling(temperature=0.0, max_tokens=1))


def _tool_to_call(request: Generation) -> dict[str, Any]:
    """The tools and the choice as the server knows them: one that is named, or none.

    Raises:
        InvalidRequest: the tool's parameters are more than a grammar can say.
        WrongState: the model is to choose.
    """
    if not request.tools:
        return {}
    choice = request.tool_choice or ToolChoice(ToolChoiceMode.AUTO)
    if choice.mode is ToolChoiceMode.NONE:
        return {"tools": (), "tool_choice": None}
    if choice.mode is ToolChoiceMode.REQUIRED and len(request.tools) == 1:
        choice = ToolChoice(ToolChoiceMode.NAMED, request.tools[0].name)
    if choice.mode is not ToolChoiceMode.NAMED:
        raise _unable("choose whether and which tool to call; name one by tool_choice, or have", "tool_choice")
    tool: Tool = next(tool for tool in request.tools if tool.name == choice.name)
    if tool.parameters:
        require_grammar(tool.parameters, "tools")
    return {"tool_choice": choice}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _told(options: Sequence[str]) -> argparse.Namespace:
    """What of the operator's arguments matters here."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--logits_all", "--chat_format"):
        parser.add_argument(name, nargs="?", default="")
    return parser.parse_known_args(options)[0]


def _unable(what: str, param: str) -> WrongState:
    return WrongState(
        f"The engine in use, llamacpp, cannot {what} the model served with LLM_ENGINE=vllm, which can.",
        reason="UNSUPPORTED_BY_ENGINE",
        param=param,
    )
