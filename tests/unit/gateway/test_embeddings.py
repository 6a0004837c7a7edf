"""OpenAI's embeddings endpoint, over a stand-in for the worker."""

from __future__ import annotations

import base64
import struct
from typing import Any

import httpx
import pytest

from gateway.testing import DIMENSIONS, EMBEDDING_MODEL, FakePeers
from gateway.testing.peers import OWN_PROMPT
from mesh.clients.embedding import InputType, Truncation

URL = "/v1/embeddings"


async def test_a_text_becomes_one_vector_with_usage(client: httpx.AsyncClient) -> None:
    """The answer has OpenAI's shape, the canonical model name, and the worker's count of tokens."""
    answer = await client.post(URL, json={"model": "all-MiniLM-L6-v2", "input": "four"})
    assert answer.status_code == 200
    assert answer.json() == {
        "object": "list",
        "model": EMBEDDING_MODEL,
        "data": [{"object": "embedding", "index": 0, "embedding": [4.0, 4.125, 4.25, 4.375]}],
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }


async def test_order_is_that_of_the_inputs(client: httpx.AsyncClient) -> None:
    """The vector at index i belongs to input i."""
    texts = ["x" * length for length in (5, 1, 9, 3)]
    data = (await client.post(URL, json={"input": texts})).json()["data"]
    assert [item["index"] for item in data] == [0, 1, 2, 3]
    assert [item["embedding"][0] for item in data] == [5.0, 1.0, 9.0, 3.0]


async def test_base64_is_little_endian_float32_of_the_same_numbers(client: httpx.AsyncClient) -> None:
    """Both encodings hold the same vector."""
    coded = (await client.post(URL, json={"input": "abc", "encoding_format": "base64"})).json()
    plain = (await client.post(URL, json={"input": "abc", "encoding_format": "float"})).json()
    decoded = struct.unpack(f"<{DIMENSIONS}f", base64.b64decode(coded["data"][0]["embedding"]))
    assert list(decoded) == plain["data"][0]["embedding"]


async def test_dimensions_truncation_and_input_type_reach_the_worker(
    client: httpx.AsyncClient, peers: FakePeers
) -> None:
    """What the client asks for is asked of the worker."""
    body = {"input": "abc", "dimensions": 2, "truncate": "NONE", "input_type": "query"}
    answer = await client.post(URL, json=body)
    assert len(answer.json()["data"][0]["embedding"]) == 2
    options = peers.embedder.calls[-1].arguments[1]
    assert (options.dimensions, options.truncation, options.input_type) == (2, Truncation.REFUSE, InputType.QUERY)


@pytest.mark.parametrize(
    ("field", "name", "input_type"),
    [
        ("input_type", "document", InputType.DOCUMENT),
        ("input_type", "passage", InputType.DOCUMENT),
        ("input_type", "search_document", InputType.DOCUMENT),
        ("input_type", "search_query", InputType.QUERY),
        ("input_type", "classification", InputType.CLASSIFICATION),
        ("input_type", "clustering", InputType.CLUSTERING),
        ("task", "retrieval.query", InputType.QUERY),
        ("task", "retrieval.passage", InputType.DOCUMENT),
        ("task", "separation", InputType.CLUSTERING),
        ("task", "text-matching", InputType.SIMILARITY),
        ("input_type", "", InputType.UNSPECIFIED),
    ],
)
async def test_input_types_are_understood_in_every_vendors_words(
    client: httpx.AsyncClient, peers: FakePeers, field: str, name: str, input_type: InputType
) -> None:
    """NVIDIA's, Cohere's and Jina's names mean the same to the worker."""
    assert (await client.post(URL, json={"input": "abc", field: name})).status_code == 200
    options = peers.embedder.calls[-1].arguments[1]
    assert (options.input_type, options.prompt_name) == (input_type, "")


async def test_a_models_own_prompt_goes_by_its_name(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """What no dialect names is for the worker to know, and to refuse."""
    assert (await client.post(URL, json={"input": "abc", "input_type": OWN_PROMPT})).status_code == 200
    assert peers.embedder.calls[-1].arguments[1].prompt_name == OWN_PROMPT
    refused = await client.post(URL, json={"input": "abc", "task": "poem"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unknown_prompt")


async def test_an_input_type_has_one_name(client: httpx.AsyncClient) -> None:
    """Two that differ would have to be weighed against each other."""
    refused = await client.post(URL, json={"input": "abc", "task": "separation", "input_type": "query"})
    assert refused.status_code == 400
    assert "input_type or task" in refused.json()["error"]["message"]


async def test_a_cut_input_is_named(client: httpx.AsyncClient) -> None:
    """Truncation is said, not silent."""
    answer = await client.post(URL, json={"input": ["short", "x" * 1001]})
    assert answer.headers["x-truncated-inputs"] == "1"


async def test_an_alias_reaches_its_model(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """A name from the settings is resolved before the worker is asked."""
    answer = await client.post(URL, json={"model": "text-embedding-3-small", "input": "a"})
    assert answer.status_code == 200
    assert peers.embedder.calls[-1].arguments[1].model == EMBEDDING_MODEL


async def test_an_unknown_model_is_404_and_names_the_known(client: httpx.AsyncClient) -> None:
    """The refusal says what would work, aliases included."""
    answer = await client.post(URL, json={"model": "all-MiniLM-L6", "input": "a"})
    error = answer.json()["error"]
    assert answer.status_code == 404
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "Did you mean all-MiniLM-L6-v2?" in error["message"]
    assert "text-embedding-3-small" in error["message"]


async def test_openai_token_ids_are_never_read_as_the_models_own(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Without OpenAI's vocabulary, ids are refused, and nothing reaches the worker."""
    for ids in ([9906, 1917], [[9906], [1917]]):
        answer = await client.post(URL, json={"input": ids})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "vocabulary_unavailable"
        assert "cl100k_base" in answer.json()["error"]["message"]
    assert peers.embedder.calls == []


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"input": ""}, "empty_input", "input"),
        ({"input": []}, "empty_input", "input"),
        ({"input": ["a", ""]}, "empty_input", "input[1]"),
        ({"input": [[1], []]}, "empty_input", "input[1]"),
        ({"input": None}, "invalid_body", "input"),
        ({"input": [1.5]}, "invalid_body", "input"),
        ({"input": ["a", 1]}, "invalid_body", "input"),
        ({"input": [True]}, "invalid_body", "input"),
        ({"input": {"a": 1}}, "invalid_body", "input"),
        ({"input": [-1]}, "invalid_body", "input"),
        ({}, "invalid_body", "input"),
        ({"input": "a", "dimensions": 0}, "invalid_body", "dimensions"),
        ({"input": "a", "dimensions": "8"}, "invalid_body", "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "invalid_body", "encoding_format"),
        ({"input": "a", "model": 7}, "invalid_body", "model"),
        ({"input": ["a"] * 2049}, "too_many_inputs", "input"),
        ({"input": ["a"] * 100_000}, "too_many_inputs", "input"),
    ],
)
async def test_bad_input_is_400_and_names_the_parameter(
    client: httpx.AsyncClient, peers: FakePeers, body: dict[str, Any], code: str, param: str
) -> None:
    """Nothing wrong reaches the worker, and the error says which field it is."""
    answer = await client.post(URL, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-should-retry"] == "false"
    assert peers.embedder.calls == []


async def test_unknown_fields_are_ignored_as_openai_ignores_them(client: httpx.AsyncClient) -> None:
    """A field of a newer SDK does no harm."""
    assert (await client.post(URL, json={"input": "a", "brand_new": {"x": 1}})).status_code == 200


async def test_a_reply_with_too_few_vectors_is_an_internal_error(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """A worker that loses an input is never believed."""

    class Losing(type(peers.embedder)):  # type: ignore[misc]
        async def embed(self, inputs: Any, options: Any = None, *, deadline: Any = None) -> Any:
            return await super().embed(inputs[:-1], options, deadline=deadline)

    peers.embedder.__class__ = Losing
    answer = await client.post(URL, json={"input": ["a", "b"]})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"


async def test_the_time_left_is_the_least_of_all_that_bound_it(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Settings, our header and the SDK's header each bound the deadline."""
    cases: list[tuple[dict[str, str], float]] = [
        ({}, 60.0),
        ({"x-request-timeout-ms": "2500"}, 2.5),
        ({"x-stainless-read-timeout": "7"}, 7.0),
        ({"x-stainless-read-timeout": "600", "x-request-timeout-ms": "900000"}, 60.0),
        ({"x-stainless-read-timeout": "not given"}, 60.0),
    ]
    for headers, seconds in cases:
        await client.post(URL, json={"input": "a"}, headers=headers)
        assert seconds - 1 < peers.embedder.calls[-1].seconds <= seconds
    refused = await client.post(URL, json={"input": "a"}, headers={"x-request-timeout-ms": "nan"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-request-timeout-ms")
