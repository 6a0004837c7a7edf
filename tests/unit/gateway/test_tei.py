"""Text Embeddings Inference's endpoints, over stand-ins for the workers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.testing import EMBEDDING_MODEL, FakePeers
from mesh.clients.embedding import InputType, TokenInputs, Truncation

HEADERS = (
    "x-compute-type",
    "x-compute-time",
    "x-compute-characters",
    "x-compute-tokens",
    "x-total-time",
    "x-tokenization-time",
    "x-queue-time",
    "x-inference-time",
)


@pytest.mark.parametrize(("inputs", "firsts"), [("four", [4.0]), (["a", "bcd"], [1.0, 3.0])])
async def test_embed_answers_with_a_bare_nested_array(
    client: httpx.AsyncClient, inputs: Any, firsts: list[float]
) -> None:
    """Also one input gets a list of vectors."""
    answer = await client.post("/embed", json={"inputs": inputs})
    assert [vector[0] for vector in answer.json()] == firsts


async def test_teis_headers_tell_where_the_time_went(client: httpx.AsyncClient) -> None:
    """All eight are there, in whole milliseconds and counts."""
    answer = await client.post("/embed", json={"inputs": "four"})
    assert all(name in answer.headers for name in HEADERS)
    assert (answer.headers["x-inference-time"], answer.headers["x-compute-tokens"]) == ("2", "4")


@pytest.mark.parametrize(("inputs", "ids"), [([5, 6], [[5, 6]]), ([[5, 6], [7]], [[5, 6], [7]])])
async def test_numbers_are_the_models_own_ids(
    client: httpx.AsyncClient, peers: FakePeers, inputs: Any, ids: list[list[int]]
) -> None:
    """Unlike OpenAI's, they go to the worker as they are."""
    answer = await client.post("/embed", json={"inputs": inputs})
    assert answer.status_code == 200
    assert peers.embedder.calls[-1].arguments[0] == TokenInputs(ids)


@pytest.mark.parametrize(
    ("asked", "truncation"),
    [
        ({}, Truncation.END),
        ({"truncate": True, "truncation_direction": "Left"}, Truncation.START),
        ({"truncate": False}, Truncation.REFUSE),
        ({"truncate": False, "truncation_direction": "Left"}, Truncation.REFUSE),
    ],
)
async def test_truncation_is_what_was_asked(
    client: httpx.AsyncClient, peers: FakePeers, asked: dict[str, Any], truncation: Truncation
) -> None:
    """truncate=false refuses; a direction chooses the end that is cut."""
    await client.post("/embed", json={"inputs": "a", **asked})
    await client.post("/rerank", json={"query": "a", "texts": ["a"], **asked})
    assert peers.embedder.calls[-1].arguments[1].truncation is truncation
    assert peers.reranker.calls[-1].arguments[2].truncation is truncation


async def test_prompt_dimensions_and_normalize_reach_the_worker(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """What the client asks for is asked of the worker."""
    await client.post("/embed", json={"inputs": "a", "prompt_name": "query", "normalize": False, "dimensions": 2})
    options = peers.embedder.calls[-1].arguments[1]
    assert (options.input_type, options.normalize, options.dimensions) == (InputType.QUERY, False, 2)


async def test_rerank_is_a_bare_array_best_first(client: httpx.AsyncClient) -> None:
    """Texts come back only when asked for."""
    body: dict[str, Any] = {"query": "red green", "texts": ["red", "red green"]}
    plain = (await client.post("/rerank", json=body)).json()
    full = (await client.post("/rerank", json={**body, "return_text": True, "raw_scores": True})).json()
    assert plain == [{"index": 1, "score": 1.0}, {"index": 0, "score": 0.5}]
    assert full == [{"index": 1, "score": 5.0, "text": "red green"}, {"index": 0, "score": 0.0, "text": "red"}]


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/embed", {"inputs": []}, 400, "Empty"),
        ("/embed", {"inputs": ""}, 400, "Empty"),
        ("/embed", {"inputs": ["a", ["b"]]}, 422, "Validation"),
        ("/embed", {"inputs": ["a", [1]]}, 422, "Validation"),
        ("/embed", {"inputs": [-5]}, 422, "Validation"),
        ("/embed", {"inputs": ["a"] * 100_000}, 422, "Validation"),
        ("/embed", {}, 422, "Validation"),
        ("/embed", {"inputs": "a", "prompt_name": "poem"}, 422, "Validation"),
        ("/embed", {"inputs": "a", "truncation_direction": "Up"}, 422, "Validation"),
        ("/rerank", {"query": "a", "texts": []}, 400, "Empty"),
        ("/rerank", {"query": "a", "texts": "b"}, 422, "Validation"),
        ("/rerank", {"texts": ["b"]}, 422, "Validation"),
    ],
)
async def test_bad_input_has_teis_shape(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, kind: str
) -> None:
    """TEI's statuses and types, with a sentence."""
    answer = await client.post(path, json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
    assert answer.json()["error"]


async def test_info_and_health(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """TEI's clients learn the model, and whether it serves, from the probe and not from an inference."""
    info = (await client.get("/info")).json()
    assert (info["model_id"], info["max_input_length"]) == (EMBEDDING_MODEL, 256)
    assert (await client.get("/health")).status_code == 200
    peers.embedder.hop.health = "NOT_SERVING"
    away = await client.get("/health")
    assert (away.status_code, away.json()["error_type"]) == (503, "Unhealthy")
