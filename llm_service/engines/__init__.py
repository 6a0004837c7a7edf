"""What a language model engine is to the worker, and the choice between them. One small file for each engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.metrics_core import Metric

from llm_service.abilities import Ability
from llm_service.generation import EngineEvent, Generation
from mesh.errors import MeshError
from mesh.generation import EngineLoad


@dataclass(frozen=True)
class Served:
    """The model an engine serves. ``context_tokens`` is 0 where the engine does not say."""

    name: str
    source: str
    revision: str = ""
    context_tokens: int = 0
    description: str = ""


class Engine(Protocol):
    """A language model behind some server. Everything above it is the same for all."""

    name: str
    concurrency: int
    """Requests it works on at once without harming each other."""
    abilities: frozenset[Ability]
    """What it can do beyond plain text; known once it has started."""

    async def start(self) -> Served:
        """Bring it up and let it write something real. Raises MeshError: the capability does not serve."""
        ...

    async def prepare(self, request: Generation) -> Generation:
        """The request as the engine can take it, ``max_tokens`` set, ``prompt_tokens`` where it can count them.

        Raises:
            MeshError: the engine cannot do it.
        """
        ...

    async def count(self, request: Generation) -> int:
        """Tokens of the prompt as the engine reads it. Raises MeshError; WrongState where it cannot count."""
        ...

    def generate(self, request: Generation) -> AsyncGenerator[EngineEvent, None]:
        """Accepted, Pieces, Ended. Raises MeshError; it never ends without Ended. Closing it stops the engine."""
        ...

    async def prove(self) -> None:
        """Show that it works, cheaply. Raises MeshError; Overloaded where it is only busy."""
        ...

    def unhealthy(self) -> MeshError | None:
        """None while it can write, otherwise why not."""
        ...

    def load(self) -> EngineLoad | None:
        """What the engine itself says of its load; None where it does not, or has not for a while."""
        ...

    def families(self) -> Iterable[Metric]:
        """The metrics that the engine publishes itself, for whoever scrapes the worker; empty where it has none."""
        ...

    def version(self) -> str:
        """The engine's version; empty where it is not known."""
        ...

    async def stop(self) -> None:
        """End it and whatever it started."""
        ...
