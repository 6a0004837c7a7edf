"""Bodies that take long to be read, and those that only look so."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx
import pytest

from gateway import json_items
from gateway.json_items import MOST_ITEMS, MOST_NESTED, require_few_items
from mesh.errors import PayloadTooLarge

JSON = {"content-type": "application/json"}


def many(item: bytes, times: int) -> bytes:
    """A body with a list of so many."""
    return b'{"input": [' + b",".join([item] * times) + b"]}"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/chat/completions", "/v1/messages", "/v2/rerank", "/v1/chunk"])
@pytest.mark.parametrize(
    "body",
    [
        many(b"1", MOST_ITEMS + 2),
        many(b'""', MOST_ITEMS + MOST_NESTED + 2),
        many(b'"a,b"', MOST_ITEMS + 2),
        many(b"[]", MOST_NESTED + 1),
        many(b"[" * 99 + b"]" * 99, MOST_NESTED // 99 + 1),
        many(b"{}", MOST_NESTED + 1),
        b"{" + b",".join(b'"%d":1' % number for number in range(MOST_NESTED + 1)) + b"}",
    ],
    ids=["numbers", "empty texts", "texts", "lists", "nested lists", "objects", "fields"],
)
async def test_a_body_of_very_many_items_is_left_unread(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    """Whatever they are, and whether or not the dialect knows the field: 413, and how to do better."""
    answer = await client.post(path, content=body, headers=JSON)
    assert answer.status_code == 413
    assert "Send it in parts." in answer.text


@pytest.mark.parametrize(
    "text",
    ["1,2,3\n" * 1_000_000, "[{:,}]" * 1_000_000, '"[,' * 1_000_000, "\\[,:\\" * 1_000_000],
    ids=["a table", "brackets", "quotes", "backslashes"],
)
async def test_what_texts_hold_is_not_counted(client: httpx.AsyncClient, text: str) -> None:
    """A document is one item, also where it is a table or looks like JSON."""
    answer = await client.post("/v1/embeddings", json={"input": [text, "b"]})
    assert answer.status_code == 200


async def test_as_many_token_ids_as_may_be_are_read() -> None:
    """The bound is where it says."""
    require_few_items(many(b"1", MOST_ITEMS))
    with pytest.raises(PayloadTooLarge, match="more than 1,000,000 items"):
        require_few_items(many(b"1", MOST_ITEMS + 2))


def drawn(chance: random.Random, depth: int = 0) -> Any:
    """Some JSON, its texts full of what separates items."""
    text = "".join(chance.choices('a,[]{}:"\\\u00e9\n', k=chance.randrange(5)))
    kind = chance.randrange(3 if depth > 3 else 5)
    if kind == 3:
        return [drawn(chance, depth + 1) for _ in range(chance.randrange(4))]
    if kind == 4:
        return {f"{number}{text}": drawn(chance, depth + 1) for number in range(chance.randrange(4))}
    return (text, 7, None)[kind]


def counted(value: Any) -> tuple[int, int]:
    """Commas between items, and lists, objects and fields, as one who has read it counts them."""
    if not isinstance(value, list | dict):
        return 0, 0
    inside = [counted(each) for each in (value.values() if isinstance(value, dict) else value)]
    fields = len(value) if isinstance(value, dict) else 0
    return sum(each[0] for each in inside) + max(0, len(value) - 1), sum(each[1] for each in inside) + 1 + fields


def test_what_is_told_by_bytes_is_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts with quotes, brackets and backslashes in them hide nothing and add nothing."""
    monkeypatch.setattr(json_items, "MOST_ITEMS", 4)
    monkeypatch.setattr(json_items, "MOST_NESTED", 6)
    chance = random.Random(7)
    seen = set()
    for _ in range(3000):
        value = drawn(chance)
        items, nested = counted(value)
        too_many = items > 4 or nested > 6
        seen.add(too_many)
        body = json.dumps(value, ensure_ascii=chance.random() < 0.5).encode()
        try:
            require_few_items(body)
        except PayloadTooLarge:
            assert too_many, body
        else:
            assert not too_many, body
    assert seen == {True, False}
