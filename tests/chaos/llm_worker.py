"""The LLM worker over an engine that writes what it is told: a process for tests that kill one while it writes.

Servicer, writer, admission and life cycle are the real ones; ``LLM_…`` variables configure it. The last message, or the
prompt, says what is written: ``COUNT SECONDS [FIRST]`` for so many numbered pieces ("0 ", "1 ", …), so many seconds
before each, and so many before the first.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Iterable

from prometheus_client.metrics_core import Metric

from llm_service.__main__ import make_capability
from llm_service.abilities import ALL_ABILITIES
from llm_service.engines import Served
from llm_service.generation import Accepted, Ended, EngineEvent, FinishReason, Generation, Piece, Usage
from llm_service.settings import LlmSettings
from mesh.errors import MeshError
from mesh.generation import EngineLoad
from mesh.serving import run


class CountingEngine:
    """Counts aloud."""

    name = "counting"
    concurrency = 32
    abilities = ALL_ABILITIES

    async def start(self) -> Served:
        """Serves at once."""
        return Served(name="counting", source="path", context_tokens=4096, description="Counts aloud.")

    async def prepare(self, request: Generation) -> Generation:
        """Takes any request as it is."""
        return request

    async def generate(self, request: Generation) -> AsyncGenerator[EngineEvent, None]:
        """The numbers that the request asks for."""
        text = request.prompt if request.prompt is not None else request.messages[-1].content
        count, seconds, *first = map(float, text.split())
        if first:
            await asyncio.sleep(first[0])
        yield Accepted()
        for number in range(int(count)):
            await asyncio.sleep(seconds)
            yield Piece(f"{number} ")
        yield Ended.one(FinishReason.STOP, Usage(3, int(count)))

    async def count(self, request: Generation) -> int:
        """What every answer's usage says."""
        return 3

    def load(self) -> EngineLoad | None:
        """Not known."""
        return None

    def families(self) -> Iterable[Metric]:
        """Nothing."""
        return ()

    async def prove(self) -> None:
        """Needs no proof."""

    def unhealthy(self) -> MeshError | None:
        """Never."""
        return None

    def version(self) -> str:
        """A version."""
        return "1"

    async def stop(self) -> None:
        """Nothing to end."""


def main() -> int:
    """Serve until told to end; returns the exit code."""
    return run("llm", LlmSettings, lambda settings: [make_capability(settings, CountingEngine())])


if __name__ == "__main__":
    sys.exit(main())
