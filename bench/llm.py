"""What the mesh adds to a language model's engine: tokens per second and time to first token, through it and beside.

One request at a time: the engine that the mesh starts by itself answers one after the other, so more in flight would
measure its queue.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.load import RequestFailed, closed_loop
from bench.measure import Round, Tell, interleave, paired_spread, quantile
from bench.options import Options
from bench.processes import Program, free_port, running
from bench.report import Row
from bench.subject import CannotMeasure, Subject

PROMPTS = (
    "What is the Torch Isolation Mesh?",
    "Why is the gateway torch-free?",
    "What does the gateway do?",
    "Which workers does the mesh have?",
    "What happens when a worker crashes?",
    "Which services does the mesh define in its protos?",
)
MAX_TOKENS = 64
_AGAINST = "engine directly"


@dataclass(slots=True)
class Writer:
    """One place that answers chats, and what was seen of its answers.

    Attributes:
        url: up to its ``/v1``.
        fields: what its requests hold beside the messages.
        answers: the text of each prompt's latest answer.
        first_token_seconds: of every answer.
    """

    url: str
    fields: Mapping[str, Any]
    client: httpx.AsyncClient
    answers: dict[str, str] = field(default_factory=dict)
    first_token_seconds: list[float] = field(default_factory=list)

    async def ask(self, prompt: str) -> float:
        """Have one answer streamed; returns its number of tokens.

        Raises:
            RequestFailed: refused, broken off, or without usage.
        """
        body = {
            "messages": [{"role": "user", "content": prompt}],
            "stream": True, "stream_options": {"include_usage": True}, "max_tokens": MAX_TOKENS, **self.fields,
        }  # fmt: skip
        pieces: list[str] = []
        tokens = 0
        began = time.perf_counter()
        async with self.client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                raise RequestFailed(f"HTTP {response.status_code}: {(await response.aread())[:300]!r}")
            async for line in response.aiter_lines():
                if not line.startswith("data:") or line.endswith("[DONE]"):
                    continue
                chunk = json.loads(line.removeprefix("data:"))
                if text := _text_of(chunk):
                    if not pieces:
                        self.first_token_seconds.append(time.perf_counter() - began)
                    pieces.append(text)
                tokens = (chunk.get("usage") or {}).get("completion_tokens") or tokens
        if not tokens:
            raise RequestFailed(f"An answer of {self.url} came without usage: {''.join(pieces)[:200]}")
        self.answers[prompt] = "".join(pieces)
        return float(tokens)

    async def round(self, seconds: float) -> Round:
        """Ask one prompt after the other for ``seconds``."""

        async def send(_: int, number: int) -> float:
            return await self.ask(PROMPTS[number % len(PROMPTS)])

        return await closed_loop(send, concurrency=1, seconds=seconds)


def _text_of(chunk: Mapping[str, Any]) -> str:
    if "error" in chunk:
        raise RequestFailed(f"An answer broke off: {chunk['error']}")
    choices = chunk.get("choices") or [{}]
    return str((choices[0].get("delta") or {}).get("content") or "")


async def measure(options: Options, subject: Subject, demo_model: Path, tell: Tell) -> list[Row]:
    """The rows of the language model.

    Raises:
        CannotMeasure: the LLM hop does not serve, or there is no model for the engine to compare with.
        DidNotStart: that engine did not start.
        RequestFailed: an answer failed.
    """
    subject.serving("llm")
    tell("language model, one answer after the other")
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=60, trust_env=False))
        mesh = Writer(f"{subject.url}/v1", {"temperature": 0}, client)
        engine = await _engine(stack, options, options.llm_model or demo_model, client)
        for prompt in PROMPTS:  # warms both, and tells whether they write the same
            await mesh.ask(prompt)
            await engine.ask(prompt)
        same = sum(mesh.answers[prompt] == engine.answers[prompt] for prompt in PROMPTS)
        mesh.first_token_seconds.clear()
        engine.first_token_seconds.clear()
        series = await interleave(
            {"mesh": lambda: mesh.round(options.seconds), "engine": lambda: engine.round(options.seconds)},
            rounds=options.rounds, unit="tokens/s", tell=tell,
        )  # fmt: skip
    first = {
        name: [quantile(writer.first_token_seconds, share) * 1000 for share in (0.5, 0.99)]
        for name, writer in (("mesh", mesh), ("engine", engine))
    }
    return [
        Row(
            part="llm", what="tokens, one request at a time", unit="tokens/s", mesh=series["mesh"].rate,
            baseline=series["engine"].rate, against=_AGAINST, spread=paired_spread(series["mesh"], series["engine"]),
        ),
        Row(part="llm", what="answers as the engine's own", unit=f"of {len(PROMPTS)}", mesh=float(same)),
        Row(
            part="llm", what="time to first token, median", unit="ms", mesh=first["mesh"][0],
            baseline=first["engine"][0], against=_AGAINST, smaller_is_better=True,
            details={"mesh_p99_ms": first["mesh"][1], "baseline_p99_ms": first["engine"][1]},
        ),
    ]  # fmt: skip


async def _engine(stack: AsyncExitStack, options: Options, model: Path, client: httpx.AsyncClient) -> Writer:
    """The engine to compare with: the one that the options name, else one like the LLM worker's own."""
    if options.engine_url:
        return Writer(options.engine_url, {"temperature": 0}, client)
    if not (model / "config.json").is_file():
        raise CannotMeasure(
            f"{model} holds no language model to compare with; name the mesh's own by --llm-model DIR, "
            "or its engine by --engine-url URL"
        )
    port = free_port()
    command = [sys.executable, "-P", "-m", "transformers.cli.transformers", "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    command += ["--device", "auto", "--dtype", "auto"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    program = Program(name="The engine", command=command, port=port, variables=offline, ready_path="/health")
    started = await stack.enter_async_context(running(program))
    # That server heeds a temperature of 0 only where the generation configuration says so too.
    greedy = json.dumps({"do_sample": False})
    return Writer(f"{started.url}/v1", {"model": str(model), "generation_config": greedy}, client)
