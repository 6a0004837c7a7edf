"""Bodies that are no JSON, or not what they say."""

from __future__ import annotations

import gzip

import httpx
import pytest

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{",
        b"not json",
        b'{"input": "a"',
        b'{"input": "\xff\xfe"}',
        b'{"input": "\\ud800"}',
        b'{"input": "a"} trailing',
        b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
async def test_what_is_not_json_in_utf8_is_400(client: httpx.AsyncClient, body: bytes) -> None:
    """Broken JSON, broken UTF-8, a lone surrogate and absurd nesting end in one typed error."""
    answer = await client.post("/v1/embeddings", content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("body", [b"[]", b"7", b"null", b'"text"'])
async def test_json_that_is_no_object_is_refused_with_the_fields(client: httpx.AsyncClient, body: bytes) -> None:
    """The refusal says which fields there are."""
    answer = await client.post("/v1/embeddings", content=body, headers=JSON)
    assert answer.status_code == 400
    assert "input" in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_body_of_another_type_is_415(client: httpx.AsyncClient, kind: str) -> None:
    """What a browser would send across sites without asking is not read."""
    answer = await client.post("/v1/embeddings", content=b'{"input": "a"}', headers={"content-type": kind})
    assert answer.status_code == 415


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "BR", "gzip, gzip"])
async def test_a_compressed_body_is_415(client: httpx.AsyncClient, encoding: str) -> None:
    """It is not inflated, whatever it would become: a bomb is refused for what it is."""
    bomb = gzip.compress(b'{"input": "' + b"a" * 2**20 + b'"}')
    answer = await client.post("/v1/embeddings", content=bomb, headers={**JSON, "content-encoding": encoding})
    assert answer.status_code == 415
    assert "uncompressed" in answer.json()["error"]["message"]


async def test_a_body_that_says_that_it_is_not_compressed_is_read(client: httpx.AsyncClient) -> None:
    """Some libraries always say it."""
    answer = await client.post("/v1/embeddings", json={"input": "a"}, headers={"content-encoding": "identity"})
    assert answer.status_code == 200


async def test_values_that_were_sent_are_not_repeated(client: httpx.AsyncClient) -> None:
    """Validation errors end up in logs: they hold no content."""
    answer = await client.post("/v1/embeddings", json={"input": "a", "dimensions": "a secret"})
    assert "a secret" not in answer.text


async def test_our_own_dialect_names_unknown_fields(client: httpx.AsyncClient) -> None:
    """A misspelt field of ours is a mistake to be told, with the nearest right one."""
    answer = await client.post("/v1/chunk", json={"text": "a", "max_token": 5})
    problem = answer.json()
    assert answer.status_code == 422
    assert problem["param"] == "max_token"
    assert "Did you mean max_tokens?" in problem["detail"]
