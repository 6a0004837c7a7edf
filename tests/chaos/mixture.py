"""Every kind of request at once, each answer compared with the one given before anything was touched."""

from __future__ import annotations

import asyncio
import json
import math
import operator
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

_PAUSE_SECONDS = 0.002
_SAME_COSINE = 0.999

Ask = Callable[[httpx.AsyncClient], Awaitable[object]]
"""One request; returns what its answer says, without what differs each time. Raises httpx.HTTPError."""


class Broken(Exception):
    """A stream that did not end as a whole one does."""


class Vectors:
    """Vectors that equal others of the same direction: the company in a batch changes their last digits."""

    def __init__(self, rows: Sequence[Sequence[float]]) -> None:
        self._rows = rows

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vectors) or len(self._rows) != len(other._rows):
            return NotImplemented
        return all(_cosine(a, b) > _SAME_COSINE for a, b in zip(self._rows, other._rows, strict=True))

    __hash__ = None  # type: ignore[assignment]  # equal to within a tolerance, which no hash can be

    def __repr__(self) -> str:
        return f"Vectors({[[round(value, 4) for value in row[:4]] for row in self._rows]} …)"


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    product: float = sum(map(operator.mul, a, b))
    return product / (math.hypot(*a) * math.hypot(*b))


async def embed(http: httpx.AsyncClient) -> object:
    """Vectors of a few texts."""
    answer = await _post(http, "/v1/embeddings", {"input": ["a red cat", "the blue dog ran", "far away"]})
    return Vectors([each["embedding"] for each in answer["data"]])


async def rerank(http: httpx.AsyncClient) -> object:
    """Which document answers a question."""
    body = {"query": "Who watches the engine?", "documents": ["A cat sleeps.", "The watchdog watches the engine."]}
    return [each["index"] for each in (await _post(http, "/v1/rerank", body))["results"]]


async def chunk(http: httpx.AsyncClient) -> object:
    """The parts of a small document."""
    document = b"# One\n\nFirst paragraph.\n\n# Two\n\nSecond paragraph.\n"
    answer = await http.post("/v1/chunk", files={"file": ("note.md", document, "text/markdown")})
    return [each["text"] for each in answer.raise_for_status().json()["chunks"]]


async def look_at_gpus(http: httpx.AsyncClient) -> object:
    """Which GPUs there are."""
    return len((await http.get("/v1/gpu")).raise_for_status().json()["devices"])


async def chat(http: httpx.AsyncClient) -> object:
    """A streamed answer, piece by piece, which has to end as a whole one does."""
    body = {"model": "", "stream": True, "messages": [{"role": "user", "content": "20 0.02"}]}
    pieces: list[str] = []
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if not answer.is_success:
            await answer.aread()
            answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                return "".join(pieces)
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise Broken(event["error"]["code"])
                pieces += [choice["delta"].get("content") or "" for choice in event["choices"]]
    raise Broken("no [DONE]")


async def _post(http: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> Any:
    return (await http.post(path, json=body)).raise_for_status().json()


@dataclass(slots=True)
class Outcomes:
    """What came of the requests so far.

    Attributes:
        done: by kind, how many were answered as before.
        failures: what went wrong, by kind.
    """

    done: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Of all kinds."""
        return sum(self.done.values()) + len(self.failures)


@asynccontextmanager
async def mixture(http: httpx.AsyncClient, lanes: Mapping[Ask, int]) -> AsyncIterator[Outcomes]:
    """Ask each kind in so many loops until the block is left; what is under way then is still waited for."""
    expected = {ask: await ask(http) for ask in lanes}
    outcomes = Outcomes()
    over = asyncio.Event()

    async def lane(ask: Ask) -> None:
        name = getattr(ask, "__name__", "")
        while not over.is_set():
            try:
                answer = await ask(http)
            except httpx.HTTPStatusError as error:
                outcomes.failures.append(f"{name}: {error.response.status_code} {error.response.text[:200]}")
            except (httpx.HTTPError, Broken) as error:
                outcomes.failures.append(f"{name}: {error!r}")
            else:
                if answer == expected[ask]:
                    outcomes.done[name] += 1
                else:
                    outcomes.failures.append(f"{name}: another answer than before: {answer!r:.200}")
            await asyncio.sleep(_PAUSE_SECONDS)

    async with asyncio.TaskGroup() as running:
        for ask, count in lanes.items():
            for _ in range(count):
                running.create_task(lane(ask))
        try:
            yield outcomes
        finally:
            over.set()
