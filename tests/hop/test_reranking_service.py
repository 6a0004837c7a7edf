"""The reranking service behind a real gRPC server, seen by its clients. The engine is a fake, all else is real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inference.engines import Head
from inference.life import ModelLife
from inference.runner import RunnerLimits
from inference.testing import fake_loaded_model
from mesh.clients.embedding import Truncation
from mesh.clients.reranking import AsyncRerankingServiceClient, RerankOptions
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, MeshError, NotFound, PayloadTooLarge, Unavailable
from mesh.serving import Capability
from mesh.testing import serve
from reranking_service.late_interaction import LateInteractionScorer
from reranking_service.reranker import Reranker
from reranking_service.servicer import SERVICE, RerankingServicer

LIMITS = RunnerLimits(items_per_request=50, tokens_per_request=400, queued_tokens=1000, batch_tokens=32)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncRerankingServiceClient]:
    """A client of a worker that ranks by late interaction over one-hot token states."""

    def load() -> Reranker:
        loaded = fake_loaded_model(tmp_path, head=Head.TOKENS, name="late-interaction/fake")
        return Reranker(LateInteractionScorer(loaded, LIMITS))

    life = ModelLife(load, capability="reranking")
    servicer = RerankingServicer(life, max_request_bytes=1024)
    capability = Capability(service=SERVICE, register=servicer.register, start=life.start, stop=life.stop)
    async with serve([capability]) as running, AsyncRerankingServiceClient(running.target) as connected:
        async with asyncio.timeout(10):
            while True:
                try:
                    await connected.info(deadline=Deadline.after(1.0))
                    break
                except Unavailable:
                    await asyncio.sleep(0.01)
        yield connected


async def test_scores_in_the_order_of_the_documents(client: AsyncRerankingServiceClient) -> None:
    """Scores come back in the documents' order, whatever their lengths."""
    assert await client.rerank("cat dog", ["on", "cat on the mat", "dog cat"]) == [0.5, 0.75, 1.0]


async def test_usage_cuts_and_raw_scores(client: AsyncRerankingServiceClient) -> None:
    """What it cost, what was cut, and the model's own scale."""
    found = await client.score("cat", ["dog", "cat " + "a " * 30], RerankOptions(raw_scores=True))
    assert found.model == "late-interaction/fake"
    assert found.scores == (0.0, 1.0)
    assert (found.usage.tokens, found.truncated_documents) == (3 + 3 + 16, (1,))
    assert found.timings.total_us >= found.timings.inference_us > 0
    short = await client.score("dog", ["cat dog"], RerankOptions(max_tokens_per_document=1, raw_scores=True))
    assert (short.scores, short.truncated_documents) == ((0.0,), (0,))


@pytest.mark.parametrize(
    ("query", "documents", "options", "error"),
    [
        ("", ["cat"], RerankOptions(), InvalidRequest),
        ("cat", [], RerankOptions(), InvalidRequest),
        ("cat", ["cat", ""], RerankOptions(), InvalidRequest),
        ("cat", ["a " * 30], RerankOptions(truncation=Truncation.REFUSE), InvalidRequest),
        ("cat", ["cat"], RerankOptions(max_tokens_per_document=0), InvalidRequest),
        ("cat", ["cat"], RerankOptions(model="rerank-v3.5"), NotFound),
        ("cat", ["cat"] * 51, RerankOptions(), PayloadTooLarge),
    ],
)
async def test_errors_keep_their_class(
    client: AsyncRerankingServiceClient,
    query: str,
    documents: list[str],
    options: RerankOptions,
    error: type[MeshError],
) -> None:
    """Bad input is the caller's error on this side too, and the worker goes on."""
    with pytest.raises(error) as refused:
        await client.score(query, documents, options)
    assert type(refused.value) is error
    assert await client.rerank("cat", ["cat"]) == [1.0]


async def test_info(client: AsyncRerankingServiceClient) -> None:
    """Info says what is served, how it scores, and within which limits."""
    info = await client.info()
    (model,) = info.models
    assert (model.name, model.method, model.max_input_tokens) == ("late-interaction/fake", "late-interaction", 16)
    assert (model.aliases, model.engine, model.device) == ((), "fake", "cpu")
    assert (model.profile, model.instruction) == ("", "")
    assert (info.limits.max_documents_per_request, info.limits.max_request_bytes) == (50, 1024)
