"""Steady requests through a gateway whose every answer is checked, while something is done to the network behind it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.chaos.openloop_record import percentile

TYPED = frozenset({429, 503, 504})
"""What a hop that is hurt may answer: busy, away, too late. 500 would say that nobody foresaw it."""

_TEXTS = (
    "a red cat",
    "the blue dog ran",
    "one two three",
    "far away",
    "the green mat",
    "sat on the mat",
    "a b c",
    "dog",
)
_PAUSE_SECONDS = 0.01
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Reply:
    """How one request ended.

    Attributes:
        began: when it was sent, on ``time.monotonic()``.
        seconds: how long it took.
        status: of HTTP; 0 where there was no answer.
        code: of the error; empty where there was none.
        right: whether a served answer holds what it held before anything was hurt; whether an error is typed.
    """

    began: float
    seconds: float
    status: int
    code: str
    right: bool

    @property
    def ended(self) -> float:
        """When its answer was there."""
        return self.began + self.seconds


@dataclass(slots=True)
class Traffic:
    """Requests so far."""

    replies: list[Reply] = field(default_factory=list)

    def begun(self, begin: float, end: float = float("inf")) -> list[Reply]:
        """Those that were sent in a stretch of ``time.monotonic()``."""
        return [reply for reply in self.replies if begin <= reply.began < end]

    def under_way(self, moment: float) -> list[Reply]:
        """Those that were on their way in a moment."""
        return [reply for reply in self.replies if reply.began < moment <= reply.ended]

    def first_served_after(self, moment: float) -> float:
        """Seconds from ``moment`` until an answer that was served; infinite where there was none."""
        served = (reply.ended for reply in self.replies if reply.status == httpx.codes.OK and reply.ended > moment)
        return min(served, default=float("inf")) - moment

    def last_failed_after(self, moment: float) -> float:
        """Seconds from ``moment`` until the last failed request was sent; 0 where none was."""
        failed = (reply.began for reply in self.replies if reply.status != httpx.codes.OK)
        return max(0.0, max(failed, default=moment) - moment)


def slowest(replies: Sequence[Reply]) -> float:
    """The longest time that one took."""
    return max((reply.seconds for reply in replies), default=0.0)


def p99(replies: Sequence[Reply]) -> float:
    """Of the times that they took."""
    return percentile((reply.seconds for reply in replies), 0.99)


def served(replies: Sequence[Reply]) -> list[Reply]:
    """Those that were."""
    return [reply for reply in replies if reply.status == httpx.codes.OK]


def failed(replies: Sequence[Reply]) -> list[Reply]:
    """Those that were not served."""
    return [reply for reply in replies if reply.status != httpx.codes.OK]


def wrong(replies: Sequence[Reply]) -> list[Reply]:
    """Wrong answers and untyped errors: there may never be any."""
    return [reply for reply in replies if not reply.right]


@asynccontextmanager
async def traffic(http: httpx.AsyncClient, *, lanes: int = 8) -> AsyncIterator[Traffic]:
    """Embed texts in ``lanes`` loops until the block is left; what is under way then is still waited for.

    The right answers are those given before the block is entered, so nothing may be hurt then.
    """
    expected = [await _ask(http, text) for text in _TEXTS]
    vectors = [_vector(answer) for answer in expected]
    assert len({repr(vector) for vector in vectors}) == len(_TEXTS), "texts of one vector could be mistaken unseen"
    done = Traffic()
    numbers = itertools.count()
    over = asyncio.Event()

    async def lane() -> None:
        while not over.is_set():
            number = next(numbers) % len(_TEXTS)
            done.replies.append(await _reply(http, _TEXTS[number], vectors[number]))
            await asyncio.sleep(_PAUSE_SECONDS)

    async with asyncio.TaskGroup() as running:
        for _ in range(lanes):
            running.create_task(lane())
        try:
            yield done
        finally:
            over.set()


async def _ask(http: httpx.AsyncClient, text: str) -> httpx.Response:
    return await http.post("/v1/embeddings", json={"model": "", "input": text}, timeout=_PATIENCE_SECONDS)


def _vector(answer: httpx.Response) -> Any:
    return answer.raise_for_status().json()["data"][0]["embedding"]


async def _reply(http: httpx.AsyncClient, text: str, expected: Any) -> Reply:
    began = time.monotonic()
    try:
        answer = await _ask(http, text)
    except httpx.HTTPError as error:
        return Reply(began, time.monotonic() - began, 0, type(error).__name__, right=False)
    seconds = time.monotonic() - began
    if answer.is_success:
        return Reply(began, seconds, answer.status_code, "", right=_vector(answer) == expected)
    code = str(answer.json()["error"]["code"])
    return Reply(began, seconds, answer.status_code, code, right=answer.status_code in TYPED)
