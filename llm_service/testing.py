"""Fakes that behave like the real thing, for tests of what stands above an engine or a child process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence

from prometheus_client.metrics_core import Metric

from llm_service.abilities import ALL_ABILITIES
from llm_service.engines import Served
from llm_service.generation import Accepted, Ended, EngineEvent, FinishReason, Generation, Piece, Usage
from llm_service.process import Command
from mesh.errors import MeshError
from mesh.generation import EngineLoad


class ScriptedEngine:
    """Writes what its script says: an exception in it is raised, and ``HOLD`` waits for ``release``.

    ``busy`` is set while it writes, ``idle`` while it does not.
    """

    HOLD = object()

    name = "scripted"
    abilities = ALL_ABILITIES

    def __init__(self, script: Sequence[EngineEvent | BaseException | object] = (), *, concurrency: int = 1) -> None:
        self.script = list(script) or [*written("one", " two")]
        self.concurrency = concurrency
        self.release = asyncio.Event()
        self.broken: MeshError | None = None
        self.engine_load: EngineLoad | None = None
        self.published: list[Metric] = []
        self.requests: list[Generation] = []
        self.busy = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self.running = 0
        self.proofs = 0
        self.proof_may_end = asyncio.Event()
        self.proof_may_end.set()
        self.proof_failure: MeshError | None = None

    async def start(self) -> Served:
        """Serves at once."""
        return Served(name="scripted-model", source="path", context_tokens=128, description="Says what it is told.")

    async def prepare(self, request: Generation) -> Generation:
        """Takes any request as it is."""
        return request

    async def count(self, request: Generation) -> int:
        """One token a word."""
        texts = [request.prompt or "", *(message.content for message in request.messages)]
        return sum(len(text.split()) for text in texts)

    async def generate(self, request: Generation) -> AsyncGenerator[EngineEvent, None]:
        """The script, step by step."""
        self.requests.append(request)
        self._count(1)
        try:
            for step in self.script:
                if step is self.HOLD:
                    await self.release.wait()
                elif isinstance(step, BaseException):
                    raise step
                elif isinstance(step, Accepted | Piece | Ended):
                    yield step
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self.running += change
        for event, on in ((self.busy, self.running > 0), (self.idle, self.running == 0)):
            event.set() if on else event.clear()

    async def prove(self) -> None:
        """Waits for ``proof_may_end``; raises what ``proof_failure`` holds."""
        self.proofs += 1
        await self.proof_may_end.wait()
        if self.proof_failure is not None:
            raise self.proof_failure

    def unhealthy(self) -> MeshError | None:
        """What ``broken`` holds."""
        return self.broken

    def load(self) -> EngineLoad | None:
        """What ``engine_load`` holds."""
        return self.engine_load

    def families(self) -> Iterable[Metric]:
        """What ``published`` holds."""
        return self.published

    def version(self) -> str:
        """A version."""
        return "1"

    async def stop(self) -> None:
        """Nothing to end."""


def written(*pieces: str) -> list[EngineEvent]:
    """The events of a whole answer, with a usage of 3 and 2 tokens."""
    return [Accepted(), *map(Piece, pieces), Ended.one(FinishReason.STOP, Usage(3, 2))]


class ScriptedChild:
    """A child process that ends when a test says so."""

    last_words = "the end"

    def __init__(self) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.cpu: float | None = None

    def end(self, how: str = "ended with exit code 1") -> None:
        """The process ends by itself."""
        if not self.ended.done():
            self.ended.set_result(how)

    async def cpu_seconds(self) -> float | None:
        """What ``cpu`` holds."""
        return self.cpu

    async def wait(self) -> str:
        """Until it has ended."""
        return await asyncio.shield(self.ended)

    async def stop(self, grace_seconds: float) -> None:  # noqa: ARG002 - the real one waits
        """Ends it."""
        self.end("was ended by SIGTERM")

    def kill(self) -> None:
        """Ends it."""
        self.end("was killed, perhaps for want of memory")


class SpawningFake:
    """What fakes of all engines share: they are started by commands, and tests end their children.

    Attributes:
        commands: how each child was started.
        children: each of them, the latest last.
    """

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.children: list[ScriptedChild] = []

    async def spawn(self, command: Command) -> ScriptedChild:
        """Start a child."""
        self.commands.append(command)
        self.children.append(ScriptedChild())
        return self.children[-1]
