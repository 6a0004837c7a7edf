"""Cohere's and Jina's reranking, over a stand-in for the worker."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.testing import RERANKING_MODEL, FakePeers
from mesh.clients.embedding import Truncation
from mesh.context import Priority

QUERY = "red green blue"
DOCUMENTS = ["red", "yellow", "red green blue", "red green"]
JSON = {"content-type": "application/json"}


async def test_cohere_v2_is_sorted_and_normalised(client: httpx.AsyncClient) -> None:
    """Best first, in [0, 1], with the positions of the request."""
    answer = (await client.post("/v2/rerank", json={"query": QUERY, "documents": DOCUMENTS})).json()
    assert [result["index"] for result in answer["results"]] == [2, 3, 0, 1]
    assert [round(result["relevance_score"], 2) for result in answer["results"]] == [1.0, 0.67, 0.33, 0.0]
    assert "document" not in answer["results"][0]
    assert answer["meta"]["billed_units"] == {"search_units": 1}
    assert answer["id"]


@pytest.mark.parametrize(
    ("path", "top_n", "count"), [("/v2/rerank", 2, 2), ("/v1/rerank", 2, 2), ("/v2/rerank", 99, 4)]
)
async def test_top_n_cuts_after_sorting(client: httpx.AsyncClient, path: str, top_n: int, count: int) -> None:
    """The best are kept, not the first."""
    answer = await client.post(path, json={"query": QUERY, "documents": DOCUMENTS, "top_n": top_n})
    indices = [result["index"] for result in answer.json()["results"]]
    assert indices == [2, 3, 0, 1][:count]


async def test_jinas_shape_with_documents(client: httpx.AsyncClient) -> None:
    """Jina's usage, model and documents are there, and top_n 0 means all."""
    body = {"model": "maxsim", "query": QUERY, "documents": [*DOCUMENTS[:3], {"text": "red green"}], "top_n": 0}
    answer = (await client.post("/v1/rerank", json=body)).json()
    assert answer["model"] == RERANKING_MODEL
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0
    assert [result["document"]["text"] for result in answer["results"]] == [
        "red green blue", "red green", "red", "yellow",
    ]  # fmt: skip


async def test_documents_are_left_out_when_not_wanted(client: httpx.AsyncClient) -> None:
    """return_documents=false halves the answer."""
    body = {"query": QUERY, "documents": DOCUMENTS, "return_documents": False}
    answer = (await client.post("/v1/rerank", json=body)).json()
    assert all("document" not in result for result in answer["results"])


async def test_rank_fields_choose_what_is_read(client: httpx.AsyncClient) -> None:
    """Cohere v1's fields are read in their order, and the whole document comes back."""
    documents = [{"title": "red", "text": "none"}, {"title": "red", "body": "green blue"}]
    body = {"query": QUERY, "documents": documents, "rank_fields": ["title", "body"]}
    answer = (await client.post("/v1/rerank", json=body)).json()
    assert answer["results"][0]["index"] == 1
    assert answer["results"][0]["document"] == documents[1]


async def test_options_reach_the_worker(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Cohere's default of 4096 tokens a document, Jina's truncation, and priorities as lanes."""
    await client.post("/v2/rerank", json={"query": "a", "documents": ["b"], "priority": 3})
    await client.post("/v1/rerank", json={"query": "a", "documents": ["b"], "truncation": False})
    cohere, jina = peers.reranker.calls
    assert cohere.arguments[2].max_tokens_per_document == 4096
    assert cohere.context is not None
    assert jina.context is not None
    assert (cohere.context.priority, jina.context.priority) == (Priority.BULK, Priority.INTERACTIVE)
    assert jina.arguments[2].truncation is Truncation.REFUSE


async def test_what_is_not_done_is_said(client: httpx.AsyncClient) -> None:
    """relevant_spans has a place to be refused in: Cohere's warnings."""
    body = {"query": "a", "documents": ["b"], "relevant_spans": {"mode": "enabled"}}
    answer = (await client.post("/v2/rerank", json=body)).json()
    assert "relevant_spans" in answer["meta"]["warnings"][0]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("top_n", ["-1", "NaN", "1e400", "2.5", '"2"', "true"])
async def test_a_top_n_that_is_no_count_is_refused(client: httpx.AsyncClient, path: str, top_n: str) -> None:
    """Negative, NaN, infinite, broken, text or boolean: 422 that names it."""
    body = f'{{"query": "a", "documents": ["b"], "top_n": {top_n}}}'
    answer = await client.post(path, content=body, headers=JSON)
    assert answer.status_code == 422
    assert "top_n" in answer.json()["message"]


async def test_cohere_has_no_zero(client: httpx.AsyncClient) -> None:
    """In Cohere's v2, top_n 0 would be an answer without results."""
    answer = await client.post("/v2/rerank", json={"query": "a", "documents": ["b"], "top_n": 0})
    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"query": "", "documents": ["a"]}, 400),
        ({"query": "a", "documents": []}, 400),
        ({"query": "a", "documents": ["b", ""]}, 400),
        ({"query": "a", "documents": ["b"] * 10_001}, 400),
        ({"query": "a", "documents": "b"}, 422),
        ({"query": "a", "documents": [3]}, 422),
        ({"query": None, "documents": ["a"]}, 422),
        ({"documents": ["a"]}, 422),
        ({"query": "a", "documents": ["b"], "model": "rerank-v9"}, 404),
    ],
)
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
async def test_bad_input_is_typed(client: httpx.AsyncClient, path: str, body: dict[str, Any], status: int) -> None:
    """Each refusal has Cohere's message and an id."""
    answer = await client.post(path, json=body)
    assert answer.status_code == status
    assert answer.json()["message"]
    assert answer.json()["id"] == answer.headers["x-request-id"]


async def test_a_document_without_text_is_named(client: httpx.AsyncClient) -> None:
    """The position says which one."""
    answer = await client.post("/v1/rerank", json={"query": "a", "documents": ["b", {"title": "c"}]})
    assert answer.status_code == 422
    assert "documents[1]" in answer.json()["detail"]


async def test_scores_that_are_no_scores_are_not_passed_on(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """NaN from an engine is an error, not a place in a ranking."""

    class Broken(type(peers.reranker)):  # type: ignore[misc]
        async def score(self, *arguments: Any, **keywords: Any) -> Any:
            scores = await super().score(*arguments, **keywords)
            object.__setattr__(scores, "scores", (float("nan"),))
            return scores

    peers.reranker.__class__ = Broken
    answer = await client.post("/v2/rerank", json={"query": "a", "documents": ["b"]})
    assert answer.status_code == 500
