"""What all engines share that the worker runs itself: an OpenAI-compatible server as a supervised child process."""

from __future__ import annotations

import asyncio
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from typing import Any

import httpx
from prometheus_client.metrics_core import Metric

from llm_service.engines import Served
from llm_service.engines.completions import http_client, stream
from llm_service.generation import Ended, EngineEvent, Generation, Piece, Sampling
from llm_service.process import Command, EngineProcess
from llm_service.pulse import Patient, feel_pulse
from llm_service.settings import LlmSettings
from llm_service.silence import SilenceWatch, is_work
from llm_service.supervision import Child, Supervisor
from mesh.clock import Clock, monotonic
from mesh.errors import Internal, MeshError, Overloaded, Unavailable
from mesh.generation import EngineLoad
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

Spawn = Callable[[Command], Awaitable[Child]]

POLL_SECONDS = 0.1
# Twice this, two pauses, and what counts as lately are less than the 10 s in which a stopped engine must be found.
HEALTH_SECONDS = 2.5
# Of the watchdog's limit, which ends the whole worker: writing the canary's token, then asking for a sign of life.
CANARY_SHARE = 0.4
SIGN_OF_LIFE_SHARE = 0.4
FRUITLESS_BEFORE_PROOF = 3
"""So many requests in a row that brought nothing may all be at fault themselves; the engine's own proof decides."""
# Ours, and what an engine that reads local files has no use for.
_WITHHELD = re.compile(r"^(LLM_|GATEWAY_|EMBEDDING_|RERANKING_|GPU_SERVICES_|HF_TOKEN|HUGGING_FACE_HUB_TOKEN)")


class ChildEngine(ABC):
    """A supervised server that holds one model. An engine's own file says how it is started and asked.

    Args:
        settings: what the worker was told.
        transport: how HTTP reaches the server; by default TCP.
        spawn: starts a process.
        clock: source of time.
    """

    name: str
    concurrency: int
    _health_route = "/health"
    _tells_usage = True
    """Whether its streams do. Where not, its pieces are counted, and stay as they are."""

    def __init__(
        self,
        settings: LlmSettings,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        spawn: Spawn = EngineProcess.spawn,
        clock: Clock = monotonic,
    ) -> None:
        self._settings = settings
        # Behind a prompt whose caller left, a request may be silent for twice its time; see `SilenceWatch`.
        self._client = http_client(stall_seconds=2 * settings.stall_seconds, transport=transport)
        self._base = ""
        self._spawn_child = spawn
        self._clock = clock
        self._silence = SilenceWatch(
            hang_seconds=settings.hang_seconds, stall_seconds=settings.stall_seconds, clock=clock
        )
        self._unanswered_since: float | None = None
        self._fruitless = 0
        self._suspicion: asyncio.Task[None] | None = None
        self._watches: list[asyncio.Task[None]] = []
        self._supervisor = Supervisor(
            spawn=self._spawn, prove=self._come_up, start_seconds=settings.start_timeout_seconds
        )

    # -- an engine's own -------------------------------------------------------------------------------------------

    @abstractmethod
    async def _find(self) -> Served:
        """Find the model and check its files. Raises ModelUnusable."""

    @abstractmethod
    def _command(self) -> Command:
        """How the server is started; sets ``_base``, where it will listen."""

    @abstractmethod
    def _asked(self, request: Generation) -> tuple[str, dict[str, Any]]:
        """The route below ``/v1`` and the body for a request."""

    @abstractmethod
    async def prepare(self, request: Generation) -> Generation:
        """The request as the engine can take it. Raises MeshError for what it cannot do."""

    @abstractmethod
    async def count(self, request: Generation) -> int:
        """Tokens of the prompt. Raises MeshError."""

    @abstractmethod
    def version(self) -> str:
        """The engine's version; empty where it is not known."""

    def _proof(self) -> Generation:
        """The cheapest request that makes it do real work."""
        return Generation(prompt="a", sampling=Sampling(temperature=0.0, max_tokens=1))

    async def _warm_up(self) -> None:
        """Let an engine whose door is open write: only a real answer proves it. Raises MeshError."""
        await self._write_one(self._proof())

    def load(self) -> EngineLoad | None:
        """What the engine says of its load; None where it does not."""
        return None

    def families(self) -> Iterable[Metric]:
        """The metrics that the engine publishes; empty where it has none."""
        return ()

    # -- the same for all ------------------------------------------------------------------------------------------

    async def start(self) -> Served:
        """Find the model, check its files, bring the engine up and warm it. Raises ModelUnusable."""
        served = await self._find()
        await self._supervisor.start()
        self._watch(feel_pulse(self._patient(), self._silence))
        return served

    async def generate(self, request: Generation) -> AsyncGenerator[EngineEvent, None]:
        """Write by the engine. Raises MeshError."""
        fruitful = False
        try:
            async with aclosing(self._ask(request)) as written:
                async for event in written:
                    fruitful = fruitful or isinstance(event, Piece | Ended)
                    yield event
        except Internal:
            fruitful = False
            raise
        finally:
            self._judge(fruitful)

    async def _ask(self, request: Generation) -> AsyncGenerator[EngineEvent, None]:
        """The engine's own events, each heard as a sign of work."""
        route, body = self._asked(request)
        streamed = stream(self._client, f"{self._base}/v1{route}", body, apart=not self._tells_usage)
        with self._owing():
            async with aclosing(streamed) as written:
                async for event in written:
                    if isinstance(event, Piece | Ended):  # Accepted comes before any work is done
                        self._unanswered_since = None
                        self._silence.heard()
                    yield event

    @contextmanager
    def _owing(self) -> Iterator[None]:
        """Around what makes the engine compute: one that gets stuck in it is restarted."""
        with self._silence.asked():
            try:
                yield
            except Unavailable as error:
                # An engine that writes for others meanwhile is not stuck: this one's time went by in its queue.
                if error.reason == "ENGINE_STUCK" and self._silence.seconds >= self._settings.stall_seconds:
                    self._supervisor.restart("it fell silent while it was writing")
                raise

    def _judge(self, fruitful: bool) -> None:
        """Have an engine that serves nobody any more prove itself: a busy one never meets the watchdog's canary."""
        self._fruitless = 0 if fruitful else self._fruitless + 1
        if self._fruitless < FRUITLESS_BEFORE_PROOF or not self._watches or self.unhealthy() is not None:
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
                await self._write_one(self._proof())
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

    async def stop(self) -> None:
        """End the engine and whatever it started."""
        watching = [*self._watches, *([self._suspicion] if self._suspicion is not None else [])]
        self._watches = []
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await self._supervisor.stop()
        await self._client.aclose()

    def _watch(self, watching: Coroutine[Any, Any, None]) -> None:
        """Run something beside the engine until it is stopped."""
        self._watches.append(asyncio.create_task(watching))

    async def _spawn(self) -> Child:
        return await self._spawn_child(self._command())

    async def _come_up(self) -> None:
        """Wait for the engine's door, then let it write."""
        while not await self._answers():  # noqa: ASYNC110 - another process: there is no event to wait for
            await asyncio.sleep(POLL_SECONDS)
        await self._warm_up()

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
            return (await self._client.get(f"{self._base}{self._health_route}", timeout=HEALTH_SECONDS)).is_success
        except httpx.HTTPError:
            return False


def engine_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the engine inherits: not our settings and secrets. It reads local files, so it never asks the hub."""
    kept = {name: value for name, value in environ.items() if not _WITHHELD.match(name)}
    fixed = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**kept, **fixed, "PYTHONUNBUFFERED": "1"}


def free_port() -> int:
    """A loopback port that is free now. Should another process take it first, the engine ends and is started again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def installed_version(python: str, *distributions: str) -> tuple[str, str]:
    """Which of ``distributions`` the environment of ``python`` holds first, and its version.

    Both are empty where it holds none, and then the engine will say so itself.
    """
    code = (
        "import sys, importlib.metadata as m\n"
        "found = {d.name: d.version for d in m.distributions() if d.name in sys.argv[1:]}\n"
        "print(*next(((name, found[name]) for name in sys.argv[1:] if name in found), ('', '')), sep='\\n')"
    )
    try:
        process = await asyncio.create_subprocess_exec(
            python, "-I", "-c", code, *distributions, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError:
        return "", ""
    output, _ = await process.communicate()
    name, _, version = output.decode("ascii", errors="replace").strip().partition("\n")
    return name, version
