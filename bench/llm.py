"""What the mesh adds to a language model's engine: the same engine, asked through the mesh and directly, in turns.

The benchmark starts its own worker with vLLM, and its own gateway before it, and reaches that very engine at its own
door too. So whatever the engine takes, it takes for both; what differs is the hop. A vLLM on the processor computes on
cores of its own; see `bench.cores`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bench.cores import Cores
from bench.gateway import gateway_program
from bench.llm_models import Model, models
from bench.load import closed_loop, post
from bench.measure import Round, Series, Tell, interleave, paired_spread, quantile
from bench.options import Options
from bench.processes import Program, free_port, running
from bench.report import Goal, Row
from bench.streams import Dial, StreamConnection, Streamed
from bench.subject import CannotMeasure
from bench.workers import until_it_serves
from ops.local.environments import has_cuda
from ops.local.layout import Layout

if TYPE_CHECKING:
    from mesh.clients.llm import AsyncLLMServiceClient

PROMPTS = (
    "What is the Torch Isolation Mesh?",
    "Why is the gateway torch-free?",
    "What does the gateway do?",
    "Which workers does the mesh have?",
    "What happens when a worker crashes?",
    "Which services does the mesh define in its protos?",
)
CONCURRENCY = 32
TOKENS = 128
LOADS_WITHIN_SECONDS = 600.0
LONG_TEXT = {
    "type": "object",
    "properties": {"text": {"type": "string", "minLength": 100_000}},
    "required": ["text"],
    "additionalProperties": False,
}
"""Keeps a small model writing until ``TOKENS``: its own answers are a sentence, of which the start is most."""
_AGAINST = "the same engine directly"
_ENGINE, _GATEWAY, _GRPC = "engine", "gateway", "gRPC"


@dataclass(slots=True)
class Way:
    """One way to the engine.

    Attributes:
        ask: has one long answer written, on a lane of its own, to a prompt.
        answers: what it has read since it was told to forget.
    """

    ask: Callable[[int, str], Awaitable[Streamed]]
    answers: list[Streamed] = field(default_factory=list)

    async def round(self, seconds: float, concurrency: int) -> Round:
        """Keep so many answers in the making for ``seconds``."""

        async def send(lane: int, number: int) -> float:
            answer = await self.ask(lane, PROMPTS[number % len(PROMPTS)])
            self.answers.append(answer)
            return float(answer.tokens)

        return await closed_loop(send, concurrency=concurrency, seconds=seconds)

    def first_ms(self, share: float) -> float:
        """The time to the first text that ``share`` of the answers stayed below."""
        return 1000 * quantile([answer.first_seconds for answer in self.answers], share)

    def gap_ms(self, share: float) -> float:
        """The time between two arrivals of text that ``share`` of them stayed below."""
        return 1000 * quantile([gap for answer in self.answers for gap in answer.gaps], share)

    @property
    def tokens_per_arrival(self) -> float:
        """How many tokens arrived at once, on average."""
        arrivals = sum(len(answer.gaps) + 1 for answer in self.answers)
        return sum(answer.tokens for answer in self.answers) / arrivals


class HttpWay:
    """OpenAI's dialect, over connections that are kept.

    Args:
        dial: opens a connection.
        url: up to its ``/v1``.
        fields: what its requests hold beside the messages.
    """

    def __init__(self, dial: Dial, url: str, fields: Mapping[str, Any]) -> None:
        self._dial = dial
        self._url = url
        self._fields = fields
        self._lanes: dict[int, StreamConnection] = {}

    async def long(self, lane: int, prompt: str) -> Streamed:
        """An answer of ``TOKENS`` tokens. Raises RequestFailed."""
        shape = {"name": "long", "schema": LONG_TEXT}
        form = {"type": "json_schema", "json_schema": shape}
        return await (await self._lane(lane)).ask(self._request(prompt, max_tokens=TOKENS, response_format=form))

    async def text(self, prompt: str) -> str:
        """The whole of the answer that the model gives by itself. Raises RequestFailed."""
        lane = await self._lane(0)
        await lane.ask(self._request(prompt, max_tokens=TOKENS))
        return lane.text()

    def _request(self, prompt: str, **fields: Any) -> bytes:
        said = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "stream": True}
        more = {"stream_options": {"include_usage": True}, **fields, **self._fields}
        return post(self._url, f"{urlsplit(self._url).path}/chat/completions", {**said, **more})

    async def _lane(self, number: int) -> StreamConnection:
        if number not in self._lanes or not self._lanes[number].is_open:
            self._lanes[number] = await self._dial()
        return self._lanes[number]

    def close(self) -> None:
        """Close its connections."""
        for lane in self._lanes.values():
            lane.close()


def grpc_way(client: AsyncLLMServiceClient) -> Callable[[int, str], Awaitable[Streamed]]:
    """Asks the worker by the mesh's own client."""
    from mesh.clients.llm import ChatMessage, Finish, Generation, Piece, ResponseFormat, Role, Sampling

    clock = time.perf_counter  # the loop's own counts milliseconds

    async def ask(_: int, prompt: str) -> Streamed:
        request = Generation(
            messages=(ChatMessage(Role.USER, prompt),),
            sampling=Sampling(temperature=0.0, max_tokens=TOKENS),
            response_format=ResponseFormat(json.dumps(LONG_TEXT), "long"),
        )
        began, texts, tokens = clock(), [], 0
        async for event in client.generate(request):
            if isinstance(event, Piece):
                texts.append(clock())
            elif isinstance(event, Finish) and event.usage is not None:
                tokens = event.usage.completion_tokens
        return Streamed.of(began, texts, tokens)

    return ask


async def measure(options: Options, layout: Layout, tell: Tell) -> list[Row]:
    """The rows of the language models. Starts its own processes, so no mesh need run.

    Raises:
        CannotMeasure: there is no vLLM and no other engine was named.
        BaselineFailed: no model could be made to measure with.
        DidNotStart: a process did not start.
        RequestFailed: an answer failed.
    """
    if options.engine_url:
        return await _measure(options, layout, None, tell)
    require_vllm(layout)
    async with models(options, layout) as measured:
        return [row for model in measured for row in await _measure(options, layout, model, tell)]


async def _measure(options: Options, layout: Layout, model: Model | None, tell: Tell) -> list[Row]:
    """The rows of one model; None is whatever the named engine serves."""
    name = model.name if model is not None else "the engine's model"
    tell(f"language model, {name}: starting an engine, a worker and a gateway")
    cores = Cores() if options.engine_url or has_cuda() else Cores.halves()
    async with AsyncExitStack() as stack:
        stack.enter_context(cores.held_to_the_rest())
        ways, same = await stack.enter_async_context(_ways(options, layout, model, cores))
        for way in ways.values():  # connections, and whatever is computed once
            await way.round(min(1.0, options.seconds), CONCURRENCY)
        alone = await _take_turns(ways, options, 1, tell)
        rows = [_first_token(way, name, ways) for way in alone if way != _ENGINE]
        together = await _take_turns(ways, options, CONCURRENCY, tell)
        rows += [row for way in together if way != _ENGINE for row in _under_load(way, name, ways, together)]
    alike = f"answers as the engine's own, {name}"
    return [*rows, Row(part="llm", what=alike, unit=f"of {len(PROMPTS)}", mesh=float(same))]


async def _take_turns(ways: Mapping[str, Way], options: Options, concurrency: int, tell: Tell) -> dict[str, Series]:
    tell(f"language model, {concurrency} at a time")
    for way in ways.values():
        way.answers.clear()
    sides = {name: (lambda way=way: way.round(options.seconds, concurrency)) for name, way in ways.items()}
    return await interleave(sides, rounds=options.rounds, unit="tokens/s", tell=tell)


def _first_token(way: str, model: str, ways: Mapping[str, Way]) -> Row:
    mine, theirs = ways[way], ways[_ENGINE]
    return Row(
        part="llm", what=f"added before the first token, concurrency 1, {way}, {model}", unit="ms",
        mesh=mine.first_ms(0.5) - theirs.first_ms(0.5), smaller_is_better=True,
        goal=Goal(at_most=5.0, of_value=True),
        details={
            "mesh_p50_ms": mine.first_ms(0.5), "baseline_p50_ms": theirs.first_ms(0.5),
            "mesh_p99_ms": mine.first_ms(0.99), "baseline_p99_ms": theirs.first_ms(0.99),
        },
    )  # fmt: skip


def _under_load(way: str, model: str, ways: Mapping[str, Way], series: Mapping[str, Series]) -> list[Row]:
    mine, theirs = ways[way], ways[_ENGINE]
    at = f"concurrency {CONCURRENCY}, {way}, {model}"
    return [
        Row(
            part="llm", what=f"tokens, {at}", unit="tokens/s", mesh=series[way].rate, baseline=series[_ENGINE].rate,
            against=_AGAINST, spread=paired_spread(series[way], series[_ENGINE]), goal=Goal(at_least=0.95),
            details={
                "mesh_tokens_per_arrival": mine.tokens_per_arrival,
                "baseline_tokens_per_arrival": theirs.tokens_per_arrival,
                "generator_cores": series[way].generator_share,
            },
        ),
        Row(
            part="llm", what=f"between tokens, p99, {at}", unit="ms", mesh=mine.gap_ms(0.99),
            baseline=theirs.gap_ms(0.99), against=_AGAINST, smaller_is_better=True, goal=Goal(at_most=1.5),
            details={"mesh_p50_ms": mine.gap_ms(0.5), "baseline_p50_ms": theirs.gap_ms(0.5)},
        ),
    ]  # fmt: skip


@asynccontextmanager
async def _ways(
    options: Options, layout: Layout, model: Model | None, cores: Cores
) -> AsyncIterator[tuple[dict[str, Way], int]]:
    """The ways to one engine, and how many prompts are answered alike through the gateway and directly."""
    from mesh.clients.llm import AsyncLLMServiceClient

    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-")))
        engine = cores.engine_python(layout.python("vllm"), directory)
        program = _worker(options, layout, Engine(directory, engine, model))
        await stack.enter_async_context(running(program))
        client = await stack.enter_async_context(AsyncLLMServiceClient(f"127.0.0.1:{program.port}"))
        await until_it_serves(program, client, LOADS_WITHIN_SECONDS)
        name = (await client.info()).models[0].name
        front = gateway_program(layout.python("gateway"), f"127.0.0.1:{program.port}")
        gateway = await stack.enter_async_context(running(front))
        direct = HttpWay(_dial_engine(options, directory), options.engine_url or "http://engine/v1", {"model": name})
        through = HttpWay(_dial(gateway.url), f"{gateway.url}/v1", {"model": ""})
        for way in (direct, through):
            stack.callback(way.close)
        same = sum([await direct.text(prompt) == await through.text(prompt) for prompt in PROMPTS])
        yield {_ENGINE: Way(direct.long), _GATEWAY: Way(through.long), _GRPC: Way(grpc_way(client))}, same


def require_vllm(layout: Layout) -> None:
    """Raise CannotMeasure where there is no environment with vLLM."""
    if not layout.python("vllm").exists():
        raise CannotMeasure(
            "there is no environment with vLLM: LLM_ENGINE=vllm ./scripts/start_torch_isolation.sh makes it; "
            "or name an engine that runs: --engine-url URL"
        )


@dataclass(frozen=True, slots=True)
class Engine:
    """A vLLM to start: its socket's directory, the Python that has it, and what it serves."""

    directory: Path
    python: Path
    model: Model | None


def _worker(options: Options, layout: Layout, engine: Engine) -> Program:
    """The worker: over the engine that the options name, else over a vLLM."""
    port = free_port()
    told = {"LLM_PORT": str(port), "LLM_METRICS_PORT": "0", "MESH_MODELS": str(layout.models)}
    if options.engine_url:
        told |= {"LLM_ENGINE": "openai", "LLM_ENGINE_URL": options.engine_url}
        told |= {"LLM_MAX_CONCURRENT_REQUESTS": str(2 * CONCURRENCY)}
    else:
        told |= {"LLM_ENGINE": "vllm", "LLM_ENGINE_PYTHON": str(engine.python), "TMPDIR": str(engine.directory)}
        told |= {"LLM_MODEL": str(engine.model.path)} if engine.model is not None else {}
    return Program(
        name="The LLM worker",
        command=[sys.executable, "-m", "llm_service"],
        port=port,
        variables=told,
        ready_within_seconds=LOADS_WITHIN_SECONDS,
    )


def _dial_engine(options: Options, directory: Path) -> Dial:
    if options.engine_url:
        return _dial(options.engine_url)

    async def dial() -> StreamConnection:
        return (await asyncio.get_running_loop().create_unix_connection(StreamConnection, _socket_in(directory)))[1]

    return dial


def _socket_in(directory: Path) -> str:
    """Where the worker has its engine listen."""
    (socket,) = directory.glob("mesh-llm-*/engine.sock")
    return str(socket)


def _dial(url: str) -> Dial:
    parts = urlsplit(url)
    if parts.scheme == "https":
        raise CannotMeasure(f"{url} is reached over TLS, which would be measured on one side alone; name an http URL")

    async def dial() -> StreamConnection:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(StreamConnection, parts.hostname or "", parts.port or 80))[1]

    return dial
