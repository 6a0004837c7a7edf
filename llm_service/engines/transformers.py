"""``transformers serve`` as a child process: any Hugging Face model that generates text, on whatever device is there.

What that server does otherwise than its OpenAI shape says, and what is done about it here (measured with 5.23):

- temperature and top_p do nothing while the model's own configuration says ``do_sample: false``. The generation
  configuration that it takes as an extra field does; it is sent whenever one of the two is asked for.
- a stop string is written out before it stops. `StopCutter` ends the text before it.
- frequency_penalty is taken for another quantity, negative values fail, and presence_penalty is ignored: both refused.
- a prompt longer than the context is computed all the same, until memory ends. `PromptMeter` refuses it first.
- requests run one after another, and the seed is one global: concurrency is 1 and the queue is ours. Its continuous
  batching would take the first request's sampling for all that follow.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any

import httpx

from llm_service.abilities import Ability
from llm_service.checkpoint import Checkpoint, card_sentence, inspect
from llm_service.engines import Served
from llm_service.engines.completions import http_client, input_of, stream
from llm_service.generation import (
    Ended,
    EngineEvent,
    EngineLoad,
    FinishReason,
    Generation,
    Message,
    Piece,
    Role,
    Sampling,
)
from llm_service.meter import PromptMeter
from llm_service.models import Located, locate
from llm_service.process import Command, EngineProcess
from llm_service.pulse import Patient, feel_pulse
from llm_service.settings import LlmSettings
from llm_service.silence import SilenceWatch, is_work
from llm_service.stops import StopCutter
from llm_service.supervision import Child, Supervisor
from mesh.clock import Clock, monotonic
from mesh.errors import Internal, MeshError, Overloaded, Unavailable, WrongState
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

POLL_SECONDS = 0.1
# Twice this and the pauses between are less than the 10 s in which a stopped engine has to be found.
HEALTH_SECONDS = 3.0
# Of the watchdog's limit, which ends the whole worker: writing the canary's token, then asking for a sign of life.
CANARY_SHARE = 0.4
SIGN_OF_LIFE_SHARE = 0.4
FRUITLESS_BEFORE_PROOF = 3
"""So many requests in a row that brought nothing may all be at fault themselves; the engine's own proof decides."""
_ACCESS_LINE = re.compile(r'^INFO: .* "(GET|POST) /|\[Request received\]|^Loading weights:.*[0-9]%')
# Ours, and what an engine that reads local files has no use for.
_WITHHELD = re.compile(r"^(LLM_|GATEWAY_|EMBEDDING_|RERANKING_|GPU_SERVICES_|HF_TOKEN|HUGGING_FACE_HUB_TOKEN)")


def _warm_up(*texts: str) -> Generation:
    roles = (Role.USER, Role.ASSISTANT)
    messages = tuple(Message(roles[index % 2], text) for index, text in enumerate(texts))
    return Generation(messages=messages, sampling=Sampling(temperature=0.0, max_tokens=1))


class TransformersEngine:
    """A supervised ``transformers serve`` that holds one model."""

    name = "transformers"
    concurrency = 1
    abilities: frozenset[Ability] = frozenset()

    def __init__(
        self,
        settings: LlmSettings,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        spawn: Callable[[Command], Awaitable[Child]] = EngineProcess.spawn,
        clock: Clock = monotonic,
    ) -> None:
        self._settings = settings
        self._python = settings.engine_python or sys.executable
        # Behind a prompt whose caller left, a request may be silent for twice its time; see `SilenceWatch`.
        self._client = http_client(stall_seconds=2 * settings.stall_seconds, transport=transport)
        self._spawn_child = spawn
        self._clock = clock
        self._silence = SilenceWatch(
            hang_seconds=settings.hang_seconds, stall_seconds=settings.stall_seconds, clock=clock
        )
        self._unanswered_since: float | None = None
        self._fruitless = 0
        self._suspicion: asyncio.Task[None] | None = None
        self._base = ""
        self._version = ""
        self._pulse: asyncio.Task[None] | None = None
        self._supervisor = Supervisor(
            spawn=self._spawn, prove=self._come_up, start_seconds=settings.start_timeout_seconds
        )

    async def start(self) -> Served:
        """Find the model, check its files, bring the engine up and warm it. Raises ModelUnusable."""
        settings = self._settings
        located: Located = await asyncio.to_thread(
            locate, settings.model, settings.model_revision, demo_path=settings.demo_path
        )
        self._checkpoint: Checkpoint = await asyncio.to_thread(inspect, located.path)
        context = settings.context_tokens or self._checkpoint.context_tokens
        self._meter = await asyncio.to_thread(PromptMeter, located.path / "tokenizer.json", context)
        self._version = await _installed_version(self._python)
        await self._supervisor.start()
        self._pulse = asyncio.create_task(feel_pulse(self._patient(), self._silence))
        return Served(
            name=located.name,
            source=located.source,
            revision=located.revision,
            context_tokens=context,
            description=card_sentence(located.path),
        )

    async def prepare(self, request: Generation) -> Generation:
        """The request with ``max_tokens`` set to what the context holds.

        Raises:
            InvalidRequest: reason CONTEXT_OVERFLOW.
            WrongState: penalties, or a chat for a model without a chat template.
        """
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(request.sampling, name):
                raise WrongState(
                    f"The engine in use cannot apply {name}; leave it out.", reason="UNSUPPORTED_BY_ENGINE", param=name
                )
        if request.prompt is None and not self._checkpoint.has_chat_template:
            raise WrongState(
                "This model has no chat template, so it answers no chats; send a prompt to continue instead.",
                reason="NO_CHAT_TEMPLATE",
                param="messages",
            )
        return await self._meter.fit(request, max_output_tokens=self._settings.max_output_tokens)

    async def count(self, request: Generation) -> int:
        """Tokens of the prompt. Raises MeshError."""
        return await self._meter.count(request)

    async def generate(self, request: Generation) -> AsyncGenerator[EngineEvent, None]:
        """Write by the engine. Raises MeshError."""
        cutter = StopCutter(request.sampling.stop)
        fruitful = False
        try:
            async with aclosing(self._ask(request)) as written:
                async for event in written:
                    fruitful = fruitful or isinstance(event, Piece | Ended)
                    match event:
                        case Piece(text):
                            if passed := cutter.feed(text):
                                yield Piece(passed)
                        case Ended(_, usage):
                            if rest := cutter.rest():
                                yield Piece(rest)
                            yield Ended.one(FinishReason.STOP, usage, stop=cutter.met) if cutter.met else event
                        case _:
                            yield event
        except Unavailable as error:
            if error.reason == "ENGINE_STUCK":
                self._supervisor.restart("it fell silent while it was writing")
            raise
        except Internal:
            fruitful = False
            raise
        finally:
            self._judge(fruitful)

    async def _ask(self, request: Generation) -> AsyncGenerator[EngineEvent, None]:
        """The engine's own events, each heard as a sign of work."""
        route, body = input_of(request)
        body |= sampling_fields(request.sampling, self._checkpoint.generation_defaults)
        body["model"] = str(self._checkpoint.path)
        with self._silence.asked():
            async with aclosing(stream(self._client, f"{self._base}/v1{route}", body)) as written:
                async for event in written:
                    if isinstance(event, Piece | Ended):  # Accepted comes before any work is done
                        self._unanswered_since = None
                        self._silence.heard()
                    yield event

    def _judge(self, fruitful: bool) -> None:
        """Have an engine that serves nobody any more prove itself: a busy one never meets the watchdog's canary."""
        self._fruitless = 0 if fruitful else self._fruitless + 1
        if self._fruitless < FRUITLESS_BEFORE_PROOF or self._pulse is None or self.unhealthy() is not None:
            return
        if self._suspicion is None or self._suspicion.done():
            self._suspicion = asyncio.create_task(self._prove_under_suspicion())

    async def _prove_under_suspicion(self) -> None:
        log.warning("requests fail in a row: the engine has to prove itself", extra=fields(requests=self._fruitless))
        with suppress(MeshError):  # one that fails is restarted, one that is busy is asked again after the next failure
            await self.prove()

    async def prove(self) -> None:
        """Write one token. Raises MeshError, and restarts an engine that cannot.

        An engine still computes for a caller who has left, until its next token. So one that is only late is
        Overloaded, for as long as it computes, its health route answers, and no longer than a request may wait.
        """
        if self._unanswered_since is None:
            self._unanswered_since = self._clock()
        limit = CANARY_SHARE * self._settings.watchdog_seconds
        computed = await self._supervisor.cpu_seconds()
        try:
            async with asyncio.timeout(limit):
                await self._write_one(self._warm_up_request())
        except TimeoutError:
            if not self._stalled() and await self._computed(computed, limit) and await self._shows_life():
                raise Overloaded(
                    "The engine is still busy with what it was asked before.", reason="ENGINE_BUSY", retry_after=5.0
                ) from None
            raise self._failed_canary() from None
        except Internal:
            raise self._failed_canary() from None

    def _stalled(self) -> bool:
        since = self._unanswered_since
        return since is not None and self._clock() - since >= self._settings.stall_seconds

    async def _computed(self, before: float | None, seconds: float) -> bool:
        """Whether the engine has worked since; also where that cannot be known."""
        now = await self._supervisor.cpu_seconds()
        return before is None or now is None or is_work(now - before, seconds)

    async def _shows_life(self) -> bool:
        try:
            async with asyncio.timeout(SIGN_OF_LIFE_SHARE * self._settings.watchdog_seconds):
                return await self._answers()
        except TimeoutError:
            return False

    def _failed_canary(self) -> Unavailable:
        self._supervisor.restart("it failed its canary")
        return Unavailable("The engine failed its canary and is being restarted.", reason="ENGINE_RESTARTING")

    def unhealthy(self) -> MeshError | None:
        """None while the engine is up and proved, otherwise why not."""
        return self._supervisor.unhealthy()

    def version(self) -> str:
        """The version of transformers in the engine's environment."""
        return self._version

    def load(self) -> EngineLoad | None:
        """It does not say; it writes for one at a time."""
        return None

    async def stop(self) -> None:
        """End the engine and whatever it started."""
        watching = [task for task in (self._pulse, self._suspicion) if task is not None]
        self._pulse = None
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await self._supervisor.stop()
        await self._client.aclose()

    async def _spawn(self) -> Child:
        port = _free_port()
        self._base = f"http://127.0.0.1:{port}"
        serve = [self._python, "-P", "-m", "transformers.cli.transformers", "serve", str(self._checkpoint.path)]
        options = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
        options += ["--device", self._settings.device, "--dtype", self._settings.dtype]
        return await self._spawn_child(Command([*serve, *options], engine_environment(os.environ), _ACCESS_LINE))

    async def _come_up(self) -> None:
        """Wait for the engine's door, then let it write: only a real answer proves it."""
        while not await self._answers():  # noqa: ASYNC110 - another process: there is no event to wait for
            await asyncio.sleep(POLL_SECONDS)
        await self._write_one(self._warm_up_request())
        if self._checkpoint.has_chat_template:
            samples = []
            for request in (_warm_up("a"), _warm_up("a", "b", "a")):
                with suppress(Internal):  # a template may refuse a made-up chat
                    samples.append((request, await self._write_one(request)))
            if samples:
                self._meter.calibrate(samples)

    def _warm_up_request(self) -> Generation:
        if self._checkpoint.has_chat_template:
            return _warm_up("a")
        return Generation(prompt="a", sampling=Sampling(temperature=0.0, max_tokens=1))

    async def _write_one(self, request: Generation) -> int:
        """Let the engine answer; returns the prompt tokens that it counted."""
        counted = 0
        async with aclosing(self.generate(request)) as written:
            async for event in written:
                if isinstance(event, Ended) and event.usage is not None:
                    counted = event.usage.prompt_tokens
        return counted

    def _patient(self) -> Patient:
        supervisor = self._supervisor
        return Patient(
            answers=self._answers,
            cpu_seconds=supervisor.cpu_seconds,
            unhealthy=supervisor.unhealthy,
            restart=supervisor.restart,
        )

    async def _answers(self) -> bool:
        try:
            return (await self._client.get(f"{self._base}/health", timeout=HEALTH_SECONDS)).is_success
        except httpx.HTTPError:
            return False


def sampling_fields(sampling: Sampling, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling as ``transformers serve`` understands it; ``defaults`` are the model's own."""
    body: dict[str, Any] = {"max_tokens": sampling.max_tokens}
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.temperature == 0.0:
        body["generation_config"] = json.dumps({"do_sample": False})
    elif sampling.temperature is not None or sampling.top_p is not None:
        chosen = {
            "do_sample": True,
            "temperature": sampling.temperature
            if sampling.temperature is not None
            else defaults.get("temperature", 1.0),
            "top_p": sampling.top_p if sampling.top_p is not None else defaults.get("top_p", 1.0),
            # Where its author says nothing, no top-k: the library's own 50 is no part of what was asked for.
            "top_k": defaults.get("top_k", 0),
        }
        body["generation_config"] = json.dumps(chosen)
    return body


def engine_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the engine inherits: not our settings and secrets. It reads local files, so it never asks the hub."""
    kept = {name: value for name, value in environ.items() if not _WITHHELD.match(name)}
    fixed = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**kept, **fixed, "PYTHONUNBUFFERED": "1"}


def _free_port() -> int:
    """A loopback port that is free now. Should another process take it first, the engine ends and is started again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _installed_version(python: str) -> str:
    """The version of transformers beside ``python``; empty when it has none, and then the engine will say so itself."""
    code = "from importlib.metadata import version; print(version('transformers'))"
    try:
        process = await asyncio.create_subprocess_exec(
            python, "-I", "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError:
        return ""
    output, _ = await process.communicate()
    return output.decode("ascii", errors="replace").strip()
