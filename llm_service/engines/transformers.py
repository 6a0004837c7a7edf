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

import json
import os
import re
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import httpx

from llm_service.abilities import Ability
from llm_service.engines import Served
from llm_service.engines.child import ChildEngine, Spawn, engine_environment, free_port, installed_version
from llm_service.engines.completions import input_of
from llm_service.generation import Ended, EngineEvent, FinishReason, Generation, Piece, Sampling
from llm_service.local_model import LocalModel
from llm_service.process import Command, EngineProcess
from llm_service.settings import LlmSettings
from llm_service.stops import StopCutter
from mesh.clock import Clock, monotonic
from mesh.errors import WrongState

_ACCESS_LINE = re.compile(r'^INFO: .* "(GET|POST) /|\[Request received\]|^Loading weights:.*[0-9]%')


class TransformersEngine(ChildEngine):
    """A supervised ``transformers serve`` that holds one model."""

    name = "transformers"
    concurrency = 1
    abilities: frozenset[Ability] = frozenset()

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
        self._version = ""

    async def _find(self) -> Served:
        self._model = await LocalModel.find(self._settings)
        _, self._version = await installed_version(self._python, "transformers")
        return self._model.served

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
        return await self._model.fit(request, max_output_tokens=self._settings.max_output_tokens)

    async def count(self, request: Generation) -> int:
        """Tokens of the prompt, what the chat template adds included. Raises WrongState where there is no template."""
        self._model.require_template(request)
        return await self._model.meter.count(request)

    async def generate(self, request: Generation) -> AsyncGenerator[EngineEvent, None]:
        """Write by the engine, up to the stop string. Raises MeshError."""
        cutter = StopCutter(request.sampling.stop)
        async with aclosing(super().generate(request)) as written:
            async for event in written:
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

    def version(self) -> str:
        """The version of transformers in the engine's environment."""
        return self._version

    def _command(self) -> Command:
        port = free_port()
        self._base = f"http://127.0.0.1:{port}"
        path = str(self._model.checkpoint.path)
        serve = [self._python, "-P", "-m", "transformers.cli.transformers", "serve", path]
        options = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
        options += ["--device", self._settings.device, "--dtype", self._settings.dtype]
        return Command([*serve, *options], engine_environment(os.environ), _ACCESS_LINE)

    def _asked(self, request: Generation) -> tuple[str, dict[str, Any]]:
        checkpoint = self._model.checkpoint
        route, body = input_of(request)
        body |= sampling_fields(request.sampling, checkpoint.generation_defaults)
        return route, {**body, "model": str(checkpoint.path)}

    def _proof(self) -> Generation:
        return self._model.proof()

    async def _warm_up(self) -> None:
        await super()._warm_up()
        await self._model.calibrate(self._write_one)


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
