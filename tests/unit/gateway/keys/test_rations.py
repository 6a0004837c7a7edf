"""How much a key may ask, through the whole gateway."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

from gateway.app import create_app
from gateway.keys.building import Keys, with_keys
from gateway.keys.meter import MemoryMeter
from gateway.keys.records import Role
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers, RawRequest
from gateway.testing.keys import KeyFile, bearer
from mesh.errors import Unavailable

Open = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]

URL = "/v1/embeddings"
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


class Watched(MemoryMeter):
    """A meter that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.used: list[int] = []

    def give_back(self, grant: Any, used: int) -> None:
        """Remember how many tokens a request took."""
        self.used.append(used)
        super().give_back(grant, used)


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """The gateway's own, watched."""
    watched = Watched()

    def keys_of(settings: GatewaySettings) -> Keys | None:
        keys = with_keys(settings)
        assert keys is not None
        keys.meter = watched
        return keys

    monkeypatch.setattr("gateway.app.with_keys", keys_of)
    return watched


async def test_the_allowance_is_told_and_then_refused(book: KeyFile, open_gateway: Open) -> None:
    """Each answer says what is left, as OpenAI's and Anthropic's do; another key is not concerned."""
    key, other = book.add(requests_per_minute=3), book.add(requests_per_minute=3)
    async with open_gateway() as client:
        answers = [await client.post(URL, json={"input": "a"}, headers=bearer(key)) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers[:3]] == ["2", "1", "0"]
        assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
        assert "x-ratelimit-limit-tokens" not in answers[0].headers
        refused = answers[3].json()["error"]
        assert (refused["code"], refused["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert "3 times a minute" in refused["message"]
        assert 19_000 <= int(answers[3].headers["retry-after-ms"]) <= 20_000
        assert (await client.post(URL, json={"input": "a"}, headers=bearer(other))).status_code == 200


async def test_two_keys_of_a_rotation_have_one_allowance(book: KeyFile, open_gateway: Open) -> None:
    """Rotating is no way to more."""
    keys = [book.add(requests_per_minute=3, account="one") for _ in range(2)]
    async with open_gateway() as client:
        statuses = [
            (await client.post(URL, json={"input": "a"}, headers=bearer(keys[turn % 2]))).status_code
            for turn in range(4)
        ]
    assert statuses == [200, 200, 200, 429]


async def test_the_gateways_limits_hold_for_keys_without_their_own(book: KeyFile, open_gateway: Open) -> None:
    """One number in the settings bounds everybody; a key with its own has that."""
    plain, own = book.add(), book.add(requests_per_minute=5)
    async with open_gateway(limits={"requests_per_minute": 1}) as client:
        for key, most in ((plain, 1), (own, 5)):
            statuses = [(await client.get("/v1/models", headers=bearer(key))).status_code for _ in range(6)]
            assert statuses.count(200) == most


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (URL, {"input": "one two three"}),
        ("/embed", {"inputs": "one two three"}),
        ("/v2/rerank", {"model": "", "query": "q", "documents": ["one", "two"]}),
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/completions", {"prompt": "Hi", "model": ""}),
        ("/v1/messages", {**CHAT, "max_tokens": 20, "model": ""}),
    ],
)
async def test_a_request_costs_the_tokens_that_the_worker_counted(
    path: str, body: dict[str, Any], book: KeyFile, open_gateway: Open, meter: Watched
) -> None:
    """However much was reserved by the body's length: the usage that the answer states is what is taken."""
    key = book.add(tokens_per_minute=1_000_000)
    async with open_gateway() as client:
        # A long name, which no model reads.
        answer = await client.post(path, json={**body, "user": "x" * 40_000}, headers=bearer(key))
    assert answer.status_code == 200
    assert meter.used == [counted(path, answer)]


def counted(path: str, answer: httpx.Response) -> int:
    """The tokens that an answer states, wherever its dialect does."""
    if path == "/embed":
        return int(answer.headers["x-compute-tokens"])
    if path == "/v2/rerank":
        return int(answer.json()["meta"]["tokens"]["input_tokens"])
    if answer.headers["content-type"].startswith("text/event-stream"):
        return int(re.findall(r'"total_tokens":([0-9]+)', answer.text)[-1])
    usage = answer.json()["usage"]
    return int(usage.get("total_tokens") or usage["input_tokens"] + usage["output_tokens"])


async def test_a_request_that_fails_costs_no_tokens(
    book: KeyFile, open_gateway: Open, peers: FakePeers, meter: Watched
) -> None:
    """Neither a body that is none, nor a worker that is away, nor asking what a text would take."""
    key = book.add(tokens_per_minute=1_000_000)
    async with open_gateway() as client:
        assert (await client.post(URL, content=b"{" * 4000, headers=bearer(key))).status_code == 415
        peers.embedder.hop.refusal = Unavailable("Away.")
        assert (await client.post(URL, json={"input": "a" * 4000}, headers=bearer(key))).status_code == 503
        counted = await client.post("/v1/messages/count_tokens", json={**CHAT, "model": ""}, headers=bearer(key))
        assert counted.status_code == 200
    assert meter.used == [0, 0, 0]


async def test_tokens_are_reserved_before_the_body_is_read(book: KeyFile, open_gateway: Open) -> None:
    """By its declared length, so that many at once do not all get through on what is left for one."""
    key = book.add(tokens_per_minute=1000)
    app = create_app(GatewaySettings.model_validate({"keys": {"file": book.path}}), peers=FakePeers().as_peers())
    head = {"content-type": "application/json", "content-length": "2400", **bearer(key)}
    first, second = RawRequest("POST", URL, head), RawRequest("POST", URL, head)
    answering = first.start(app)
    await asyncio.sleep(0)
    await second.start(app)
    assert second.status == 429
    assert "tokens a minute" in json.loads(second.body)["error"]["message"]
    first.say(json.dumps({"input": "a"}).encode())
    await answering
    assert first.status == 200
    third = RawRequest("POST", URL, head)
    third.say(json.dumps({"input": "a"}).encode())
    await third.start(app)
    assert third.status == 200


async def test_a_single_body_is_never_too_large_for_a_minute(book: KeyFile, open_gateway: Open) -> None:
    """A guess that is over the whole allowance waits for all of it, and not for ever."""
    key = book.add(tokens_per_minute=10)
    async with open_gateway() as client:
        answer = await client.post(URL, json={"input": "a", "user": "x" * 4000}, headers=bearer(key))
    assert answer.status_code == 200


async def test_who_leaves_in_the_middle_pays_for_what_was_written(
    book: KeyFile, peers: FakePeers, meter: Watched
) -> None:
    """Leaving before the usage is told is no way to texts for nothing, and the place in progress comes back."""
    key = book.add(tokens_per_minute=1000, max_concurrent_requests=1)
    peers.writer.gate = asyncio.Semaphore(2)
    app = create_app(GatewaySettings.model_validate({"keys": {"file": book.path}}), peers=peers.as_peers())
    body = json.dumps({**CHAT, "stream": True}).encode()
    head = {"content-type": "application/json", "content-length": str(len(body)), **bearer(key)}
    request = RawRequest("POST", "/v1/chat/completions", head)
    answering = request.start(app)
    request.say(body)
    await request.until(b"Hel")
    busy = RawRequest("POST", "/v1/chat/completions", head)
    await busy.start(app)
    assert busy.status == 429
    request.leave()
    await answering
    assert len(meter.used) == 1
    assert meter.used[0] > len(body) // 4
    assert meter.in_progress(next(iter(meter._accounts))) == 0


async def test_watching_costs_no_tokens(book: KeyFile, peers: FakePeers, meter: Watched) -> None:
    """However long a status page was open: it reads no text by a model."""
    key = book.add(Role.OPERATOR, tokens_per_minute=10)
    app = create_app(GatewaySettings.model_validate({"keys": {"file": book.path}}), peers=peers.as_peers())
    request = RawRequest("GET", "/status/stream", bearer(key))
    answering = request.start(app)
    await request.until(b"event: status")
    request.leave()
    await answering
    assert meter.used == [0]


async def test_a_key_without_limits_is_not_counted(book: KeyFile, open_gateway: Open, meter: Watched) -> None:
    """Who may ask without end costs no counting."""
    key = book.add(max_body_bytes=4000)
    async with open_gateway() as client:
        answer = await client.post(URL, json={"input": "a"}, headers=bearer(key))
    assert answer.status_code == 200
    assert not any(name.startswith("x-ratelimit") for name in answer.headers)
    assert meter.used == []


async def test_the_status_tells_how_keys_are_kept(book: KeyFile, open_gateway: Open) -> None:
    """How many are usable and where limits are counted; no key, no tenant."""
    key = book.add(Role.OPERATOR, tenant="secret-project")
    book.add(revoked=1)
    async with open_gateway() as client:
        status = await client.get("/status", headers=bearer(key))
        assert status.json()["keys"] == {"usable": 1, "limits_in": "this gateway's memory", "file_problem": ""}
        assert "secret-project" not in status.text
        metrics = (await client.get("/metrics", headers=bearer(key))).text
    assert "mesh_keys_usable 1.0" in metrics
    assert "secret-project" not in metrics
