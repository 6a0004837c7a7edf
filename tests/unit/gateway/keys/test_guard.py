"""Who is let in: where keys are looked for, which ones are taken, and all of it before a body is read."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

from gateway.app import create_app
from gateway.door import Door
from gateway.keys.form import _checksum, id_of, new_key
from gateway.keys.records import Role
from gateway.lifecycle import Lifecycle
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers, RawRequest
from gateway.testing.keys import KeyFile, bearer
from mesh.errors import Overloaded

Open = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]

URL = "/v1/embeddings"
BODY = {"input": "a"}


def basic(key: str) -> str:
    """As a browser sends a password."""
    return "Basic " + base64.b64encode(f"somebody:{key}".encode()).decode()


@pytest.mark.parametrize(
    "headers",
    [
        lambda key: {"authorization": f"Bearer {key}"},
        lambda key: {"authorization": f"bearer  {key} "},
        lambda key: {"x-api-key": key},
        lambda key: {"authorization": basic(key)},
        lambda key: {"authorization": f"Bearer {key}", "x-api-key": key},
    ],
)
async def test_each_clients_way_to_send_a_key_is_taken(
    headers: Callable[[str], dict[str, str]], book: KeyFile, open_gateway: Open
) -> None:
    """OpenAI's, Anthropic's and a browser's; also all at once, where they are the same."""
    key = book.add()
    async with open_gateway() as client:
        assert (await client.post(URL, json=BODY, headers=headers(key))).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([], "missing_api_key"),
        ([("authorization", "Bearer ")], "missing_api_key"),
        ([("authorization", "Bearer none")], "invalid_api_key"),
        ([("authorization", "Digest {key}")], "invalid_api_key"),
        ([("authorization", "{key}")], "invalid_api_key"),
        ([("authorization", "Basic %%%")], "invalid_api_key"),
        ([("authorization", "Bearer {key}x")], "invalid_api_key"),
        ([("x-api-key", "{other}")], "invalid_api_key"),
        ([("authorization", "Bearer {key}"), ("x-api-key", "none")], "invalid_api_key"),
        ([("authorization", "Bearer {key}"), ("authorization", "Bearer {second}")], "invalid_api_key"),
        ([("x-api-key", "{key}"), ("x-api-key", "{second}")], "invalid_api_key"),
        ([("cookie", "key={key}")], "missing_api_key"),
    ],
)
async def test_who_has_no_good_key_is_401(
    headers: list[tuple[str, str]], code: str, book: KeyFile, open_gateway: Open
) -> None:
    """None, nonsense, a stranger's; and two good ones that differ: a proxy may have looked at the other one."""
    names = {"key": book.add(), "second": book.add(), "other": new_key()[0]}
    sent = [(name, value.format(**names)) for name, value in headers]
    async with open_gateway() as client:
        answer = await client.post(URL, json=BODY, headers=sent)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)
        assert answer.headers["x-should-retry"] == "false"
        in_url = await client.post(f"{URL}?api_key={names['key']}", json=BODY)
        assert in_url.status_code == 401


async def test_a_known_id_with_another_secret_is_refused(book: KeyFile, open_gateway: Open) -> None:
    """The id is public; a stranger's own key, made to look like it, has a right checksum and opens nothing."""
    known = id_of(book.add()) or ""
    book.add()
    forged = forge(known)
    assert id_of(forged) == known
    async with open_gateway() as client:
        answer = await client.post(URL, json=BODY, headers=bearer(forged))
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


def forge(key_id: str) -> str:
    """A key with a chosen id: anybody can compute a checksum."""
    body = f"mesh_{key_id}_{'A' * 43}"
    return body + _checksum(body)


SHAPES: dict[str, Callable[[Any], Any]] = {
    "/v1/embeddings": lambda said: said["error"]["type"],
    "/v1/messages": lambda said: (said["type"], said["error"]["type"], "request_id" in said),
    "/v2/rerank": sorted,
    "/v1/rerank": sorted,
    "/embed": sorted,
    "/v1/chunk": lambda said: (said["status"], said["reason"]),
}


@pytest.mark.parametrize(
    ("path", "strange", "forbidden", "limited"),
    [
        ("/v1/embeddings", "authentication_error", "permission_error", "rate_limit_error"),
        (
            "/v1/messages",
            ("error", "authentication_error", True),
            ("error", "permission_error", True),
            ("error", "rate_limit_error", True),
        ),
        ("/v2/rerank", ["id", "message"], ["id", "message"], ["id", "message"]),
        ("/v1/rerank", ["detail", "id", "message"], ["detail", "id", "message"], ["detail", "id", "message"]),
        ("/embed", ["error", "error_type"], ["error", "error_type"], ["error", "error_type"]),
        ("/v1/chunk", (401, "INVALID_API_KEY"), (403, "ROLE_NEEDED"), (429, "RATE_LIMIT_EXCEEDED")),
    ],
)
async def test_refusals_have_the_dialects_shape(  # noqa: PLR0917 - a table's columns and fixtures
    path: str, strange: Any, forbidden: Any, limited: Any, book: KeyFile, open_gateway: Open
) -> None:
    """401, 403 and 429, each as the client of that path reads it; a caller's own rate is 429 for Anthropic's too."""
    limited_key, operator = book.add(requests_per_minute=1), book.add(Role.OPERATOR)
    async with open_gateway() as client:
        await client.get("/v1/models", headers=bearer(limited_key))  # all that it may ask
        said = [await client.post(path, json={}, headers=bearer(key)) for key in (new_key()[0], operator, limited_key)]
    assert [answer.status_code for answer in said] == [401, 403, 429]
    assert [SHAPES[path](answer.json()) for answer in said] == [strange, forbidden, limited]
    assert said[2].headers["x-should-retry"] == "true"
    assert 59 <= int(said[2].headers["retry-after"]) <= 60


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"revoked": 1_700_000_100}, "revoked"),
        ({"expires": 1_700_000_100}, "expired at 2023-11-14T22:15:00Z"),
    ],
)
async def test_a_key_that_was_good_is_told_so(
    given: dict[str, Any], told: str, book: KeyFile, open_gateway: Open
) -> None:
    """Who holds the whole key learns why it is refused."""
    key = book.add(**given)
    async with open_gateway() as client:
        answer = await client.post(URL, json=BODY, headers=bearer(key))
    assert answer.status_code == 401
    assert told in answer.json()["error"]["message"]


async def test_a_key_works_until_the_moment_it_expires(book: KeyFile, open_gateway: Open) -> None:
    """An end that lies ahead refuses nothing."""
    key = book.add(expires=int(time.time()) + 3600)
    async with open_gateway() as client:
        assert (await client.post(URL, json=BODY, headers=bearer(key))).status_code == 200


@pytest.mark.parametrize("size", ["20", "900000", "90000000"])
async def test_a_refused_body_is_not_read(size: str, book: KeyFile) -> None:
    """Whatever a stranger sends costs nothing but its headers; nor is more of a key's body read than it may send."""
    key = book.add(max_body_bytes=10)
    app = create_app(GatewaySettings.model_validate({"keys": {"file": book.path}}), peers=FakePeers().as_peers())
    for headers, status in (({}, 401), ({"x-api-key": "none"}, 401), ({"x-api-key": key}, 413)):
        request = RawRequest("POST", URL, {"content-type": "application/json", "content-length": size, **headers})
        if int(size) < 1_000_000:
            request.say(b"{", more=True)
        answering = request.start(app)
        while request.status is None:
            assert not answering.done()
            await asyncio.sleep(0)
        assert request.status == status
        assert request.unheard == (1 if int(size) < 1_000_000 else 0)
        request.leave()
        await answering


async def test_a_body_that_declares_no_length_is_stopped_at_the_keys_limit(book: KeyFile) -> None:
    """A limit of bytes holds for what comes, and not only for what is said."""
    key = book.add(max_body_bytes=1000)
    app = create_app(GatewaySettings.model_validate({"keys": {"file": book.path}}), peers=FakePeers().as_peers())
    request = RawRequest("POST", URL, {"content-type": "application/json", **bearer(key)})
    answering = request.start(app)
    request.say(b" " * 900, more=True)
    request.say(b" " * 900, more=True)
    await answering
    assert request.status == 413


@pytest.mark.parametrize(
    ("origin", "status"),
    [(None, 200), ("http://gateway", 200), ("http://evil.example", 403), ("null", 403), ("http://gateway:81", 403)],
)
async def test_a_browsers_password_serves_its_own_pages_only(
    origin: str | None, status: int, book: KeyFile, open_gateway: Open
) -> None:
    """A browser sends it along with whatever another site has it post; a key in a header it does not."""
    key = book.add()
    headers = {"origin": origin} if origin else {}
    async with open_gateway() as client:
        answer = await client.post(URL, json=BODY, headers={"authorization": basic(key), **headers})
        assert answer.status_code == status
        assert (await client.post(URL, json=BODY, headers={**bearer(key), **headers})).status_code == 200


async def test_workers_and_the_log_know_the_tenant_and_nobody_the_key(
    book: KeyFile, open_gateway: Open, peers: FakePeers, caplog: pytest.LogCaptureFixture
) -> None:
    """The tenant travels with the call; the line has the key's id; nobody can say that they are somebody else."""
    key = book.add(tenant="search")
    with caplog.at_level(logging.DEBUG):
        async with open_gateway() as client:
            await client.post(URL, json=BODY, headers={**bearer(key), "x-mesh-tenant": "somebody-else"})
            forbidden = await client.get("/metrics", headers=bearer(key))
            missing = await client.get("/v1/nothing", headers={"x-api-key": key})
    context = peers.embedder.calls[-1].context
    assert context is not None
    assert context.tenant == "search"
    lines = [record.fields for record in caplog.records if record.message == "request"]  # type: ignore[attr-defined]
    assert [(line["status"], line["key"], line["tenant"]) for line in lines] == [
        (status, id_of(key), "search") for status in (200, 403, 404)
    ]
    secret = key.rpartition("_")[2]
    everything = [str(vars(record)) for record in caplog.records] + [forbidden.text, missing.text]
    assert not any(secret in text or secret[:20] in text for text in everything)


class Stand:
    """A door before a gateway that asks for keys."""

    def __init__(self, book: KeyFile) -> None:
        self.peers = FakePeers()
        self.lifecycle = Lifecycle()
        settings = GatewaySettings.model_validate({"keys": {"file": book.path}})
        self.door = Door.of(settings, self.lifecycle)
        self.app = create_app(settings, peers=self.peers.as_peers(), lifecycle=self.lifecycle, door=self.door)

    def ask(self, path: str, **headers: str) -> bytes | None:
        """What the door says."""
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        return self.door.turn_away({"type": "http", "method": "POST", "path": path, "headers": raw})


async def test_the_door_refuses_strangers_before_it_tells_them_how_busy_it_is(
    book: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer is the layers' own; a flood of strangers costs no task each, and not a line each."""
    key = book.add()
    stand = Stand(book)
    stand.peers.embedder.hop.refusal = Overloaded("Full.", hop="embedding")
    with caplog.at_level(logging.INFO, logger="gateway.journal"):
        answers = [stand.ask(URL, content_length="10", authorization="Bearer none") for _ in range(100)]
    for answer in answers:
        assert answer is not None
        assert answer.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
        assert b"\r\nwww-authenticate: Bearer" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_api_key"
    assert 0 < len([record for record in caplog.records if record.message == "request"]) <= 10
    busy = stand.ask(URL, content_length="10", authorization=f"Bearer {key}")
    assert busy is not None
    assert busy.startswith(b"HTTP/1.1 429")


async def test_who_was_let_in_by_the_door_is_not_looked_at_again(book: KeyFile) -> None:
    """A key that is revoked between the two does not make half of a request; one look costs half of two."""
    key = book.add()
    stand = Stand(book)
    scope = {"type": "http", "method": "POST", "path": URL, "headers": [(b"x-api-key", key.encode())]}
    assert stand.door.turn_away(scope) is None
    assert stand.door.guard is not None
    scope["headers"] = []
    exchange = scope["gateway.exchange"]
    assert stand.door.guard.refusal(exchange, scope) is None  # type: ignore[arg-type]  # a scope holds anything
