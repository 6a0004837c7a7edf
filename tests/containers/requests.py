"""A small request for each worker, and callers that send it over and over while something is done to a container."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.chaos.traffic import TYPED, Reply, Traffic

_PAUSE_SECONDS = 0.02
_PATIENCE_SECONDS = 30.0
_PAGE = b"<html><body><h1>Hops</h1><p>A circuit breaker stops calls to a peer that fails.</p></body></html>"


@dataclass(frozen=True)
class Knock:
    """How a worker is asked through the gateway.

    Attributes:
        container: of the worker.
        hop: the gateway's name for it.
        path: of the route.
        body: keyword arguments of the request.
        answer: the key of the answer that is always the same.
    """

    container: str
    hop: str
    path: str
    body: dict[str, Any]
    answer: str


KNOCKS = {
    knock.container: knock
    for knock in (
        Knock("embedding-services", "embedding", "/v1/embeddings", {"json": {"input": "a red cat"}}, "model"),
        Knock(
            "reranking-services", "reranking", "/v2/rerank",
            {"json": {"model": "", "query": "capital of France", "documents": ["Berlin", "Paris is in France"]}},
            "results",
        ),
        Knock("gpu-services", "chunking", "/v1/chunk", {"files": {"file": ("page.html", _PAGE, "text/html")}}, "usage"),
        Knock(
            "llm-services", "llm", "/v1/chat/completions",
            {"json": {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0, "max_tokens": 4}},
            "usage",
        ),
    )
}  # fmt: skip


async def ask(http: httpx.AsyncClient, knock: Knock) -> httpx.Response:
    """One request."""
    return await http.post(knock.path, timeout=_PATIENCE_SECONDS, **knock.body)


@asynccontextmanager
async def asking(http: httpx.AsyncClient, knock: Knock, *, lanes: int) -> AsyncIterator[Traffic]:
    """Ask in so many loops until the block is left; each answer is held against the one before it was entered.

    Scores of the same batch may differ in their last bits, so that of a ranking its order is compared.
    """
    first = await ask(http, knock)
    assert first.is_success, first.text
    expected = _comparable(first.json()[knock.answer])
    done, over = Traffic(), asyncio.Event()

    async def lane() -> None:
        while not over.is_set():
            began = time.monotonic()
            try:
                answer = await ask(http, knock)
                reply = _judge(answer, knock, expected, began)
            except httpx.HTTPError as error:
                reply = Reply(began, time.monotonic() - began, 0, type(error).__name__, right=False)
            done.replies.append(reply)
            await asyncio.sleep(_PAUSE_SECONDS)

    async with asyncio.TaskGroup() as group:
        for _ in range(lanes):
            group.create_task(lane())
        try:
            yield done
        finally:
            over.set()


def _judge(answer: httpx.Response, knock: Knock, expected: object, began: float) -> Reply:
    seconds, status = time.monotonic() - began, answer.status_code
    document = answer.json()
    if answer.is_success:
        return Reply(began, seconds, status, "", right=_comparable(document[knock.answer]) == expected)
    # Each dialect has its own shape; every one of them says more than its status.
    error = document.get("error", document)
    code = error.get("code") or error.get("message", "") if isinstance(error, dict) else str(error)
    return Reply(began, seconds, status, str(code), right=status in TYPED and bool(code))


def _comparable(answer: object) -> object:
    if isinstance(answer, list):
        return [each["index"] for each in answer]
    return answer
