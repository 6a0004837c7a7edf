"""Cohere's own SDK, unmodified, against a running gateway."""

from __future__ import annotations

from collections.abc import Iterator

import cohere
import pytest
from cohere.errors import BadRequestError, NotFoundError, ServiceUnavailableError, UnprocessableEntityError

from gateway.settings import GatewaySettings
from gateway.testing import FakePeers, RunningGateway
from mesh.errors import Unavailable

QUERY = "red green blue"
DOCUMENTS = ["red", "yellow", "red green blue", "red green"]


@pytest.fixture
def gateway() -> Iterator[RunningGateway]:
    """A gateway on a socket, over stand-ins."""
    with RunningGateway(GatewaySettings(), FakePeers()) as running:
        yield running


@pytest.fixture
def v2(gateway: RunningGateway) -> Iterator[cohere.ClientV2]:
    """The SDK's current client."""
    with cohere.ClientV2("none", base_url=gateway.url) as client:
        yield client


def test_v2_rerank(v2: cohere.ClientV2) -> None:
    """Sorted, in [0, 1], cut to top_n, with what it cost."""
    answer = v2.rerank(model="maxsim", query=QUERY, documents=DOCUMENTS, top_n=2)
    assert [result.index for result in answer.results] == [2, 3]
    assert answer.results[0].relevance_score == 1.0
    assert answer.meta is not None
    assert answer.meta.billed_units is not None
    assert answer.meta.billed_units.search_units == 1


async def test_v2_rerank_async(gateway: RunningGateway) -> None:
    """The async client gets the same."""
    async with cohere.AsyncClientV2("none", base_url=gateway.url) as client:
        answer = await client.rerank(model="", query=QUERY, documents=DOCUMENTS, max_tokens_per_doc=64, priority=5)
    assert [result.index for result in answer.results] == [2, 3, 0, 1]
    assert gateway.peers.reranker.calls[-1].arguments[2].max_tokens_per_document == 64


def test_v1_rerank(gateway: RunningGateway) -> None:
    """The older client gets its documents back, from texts and from objects."""
    documents = [*DOCUMENTS, {"text": "blue", "id": "7"}]
    with cohere.Client("none", base_url=gateway.url) as client:
        answer = client.rerank(query=QUERY, documents=documents, return_documents=True)
    assert [result.index for result in answer.results] == [2, 3, 0, 4, 1]
    assert answer.results[0].document is not None
    assert answer.results[0].document.text == "red green blue"
    assert answer.results[3].document is not None
    assert answer.results[3].document.model_extra == {"id": "7"}


def test_errors_are_the_sdks_own_classes(gateway: RunningGateway, v2: cohere.ClientV2) -> None:
    """Each status becomes its class, with Cohere's message."""
    with pytest.raises(BadRequestError) as empty:
        v2.rerank(model="", query=QUERY, documents=[])
    assert "documents is empty" in empty.value.body["message"]
    with pytest.raises(UnprocessableEntityError) as negative:
        v2.rerank(model="", query=QUERY, documents=DOCUMENTS, top_n=-1)
    assert "top_n" in negative.value.body["message"]
    with pytest.raises(NotFoundError) as unknown:
        v2.rerank(model="rerank-v9", query=QUERY, documents=DOCUMENTS)
    assert "maxsim" in unknown.value.body["message"]
    gateway.peers.reranker.error = Unavailable("Away.", retry_after=0.01)
    with pytest.raises(ServiceUnavailableError):
        v2.rerank(model="", query=QUERY, documents=DOCUMENTS, request_options={"max_retries": 0})
