"""Whose name the gateway answers to, and what a browser may make of its answers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.app import create_app
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers, RawRequest


def gateway(**settings: Any) -> tuple[httpx.AsyncClient, FakePeers]:
    """A client of a gateway with these settings, and its workers."""
    peers = FakePeers()
    keys = {"open_to_anyone": True}  # whoever listens beyond loopback has to say so
    app = create_app(GatewaySettings.model_validate({"keys": keys, **settings}), peers=peers.as_peers())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1:8000"), peers


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8000",
        "[::1]:8000",
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "mesh.localhost",
        "gateway",
        "192.168.1.7:8000",
    ],
)
async def test_a_gateway_on_loopback_answers_to_what_nobody_else_can_take(host: str) -> None:
    """Addresses, localhost and names without a dot: no other site can be called so."""
    client, _ = gateway()
    assert (await client.get("/health/live", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "attacker.example",
        "attacker.example:8000",
        "127.0.0.1.nip.example",
        "localhost.attacker.example",
        "0x7f.1",
        "[::1].attacker.example",
        "attacker.example.",
        "a@127.0.0.1.example",
        "\xe4.example",
    ],
)
@pytest.mark.parametrize("path", ["/status", "/metrics", "/", "/v1/models", "/nowhere"])
async def test_a_gateway_on_loopback_answers_to_no_other_name(host: str, path: str) -> None:
    """DNS rebinding: a page that points its own name here reads nothing, on no route."""
    client, _ = gateway()
    refused = await client.get(path, headers=[(b"host", host.encode("latin-1"))])
    assert refused.status_code == 421
    assert "allowed_hosts" in refused.text
    assert host not in refused.text


async def test_names_can_be_listed() -> None:
    """With all below one; on any address a list is kept to."""
    for settings in ({"host": "127.0.0.1"}, {"host": "0.0.0.0"}):
        client, _ = gateway(**settings, allowed_hosts=["Mesh.Example", "*.inner.example"])
        answers = {
            host: (await client.get("/health/live", headers={"host": host})).status_code
            for host in ("mesh.example", "a.inner.example:80", "inner.example", "amesh.example", "127.0.0.1")
        }
        assert [host for host, status in answers.items() if status == 200] == [
            "mesh.example",
            "a.inner.example:80",
            "127.0.0.1",
        ]


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0"}, {"host": "::"}, {"allowed_hosts": ["*"]}])
async def test_beyond_loopback_every_name_is_answered_to_until_some_are_listed(settings: dict[str, Any]) -> None:
    """A load balancer calls a gateway as it likes."""
    client, _ = gateway(**settings)
    assert (await client.get("/health/live", headers={"host": "mesh.example"})).status_code == 200


async def test_a_container_published_on_loopback_answers_as_one_that_listens_there() -> None:
    """Inside it listens on every address; a page of another name reaches it through this machine's all the same."""
    client, _ = gateway(host="0.0.0.0", published_host="127.0.0.1", keys={})
    refused = await client.get("/status", headers={"host": "attacker.example"})
    assert refused.status_code == 421
    assert (await client.get("/status", headers={"host": "localhost:8000"})).status_code == 200


async def test_two_hosts_are_one_too_many() -> None:
    """Whoever stands before the gateway may have gone by the other one."""
    client, _ = gateway()
    refused = await client.get("/health/live", headers=[(b"host", b"localhost"), (b"host", b"127.0.0.1")])
    assert (refused.status_code, refused.json()["reason"]) == (400, "HOST_REPEATED")
    repeated = await client.get("/health/live", headers=[(b"host", b"localhost"), (b"x-a", b"1"), (b"x-a", b"2")])
    assert repeated.status_code == 200


async def test_another_sites_page_cannot_use_the_gateway() -> None:
    """An upload is what a page may send without being asked; the browser says where it comes from."""
    client, peers = gateway()
    files = {"file": ("a.txt", b"words", "text/plain")}
    refused = await client.post("/v1/chunk", files=files, headers={"sec-fetch-site": "cross-site"})
    assert (refused.status_code, refused.json()["reason"]) == (403, "CROSS_SITE")
    assert peers.chunker.calls == []
    for site in ("same-origin", "none"):
        assert (await client.post("/v1/chunk", files=files, headers={"sec-fetch-site": site})).status_code == 200
    assert (await client.get("/", headers={"sec-fetch-site": "cross-site"})).status_code == 200


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/chunk", "/status", "/v1/messages"])
async def test_other_sites_may_not_read_answers(path: str) -> None:
    """No answer carries a header of CORS, least of all that to a browser's question whether it may ask."""
    client, _ = gateway()
    origin = {"origin": "https://attacker.example"}
    asked = await client.options(path, headers={**origin, "access-control-request-method": "POST"})
    assert asked.status_code == 405
    answered = await client.get(path, headers=origin)
    for answer in (asked, answered):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("path", ["/", "/docs", "/status", "/metrics", "/health/live", "/nowhere", "/pages/mesh.css"])
async def test_every_answer_carries_the_security_headers_once(path: str) -> None:
    """Errors and pages too."""
    client, _ = gateway()
    answer = await client.get(path)
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
    assert answer.headers.get_list("cross-origin-resource-policy") == ["same-origin"]


async def test_pages_run_nothing_from_elsewhere() -> None:
    """What a document's text could smuggle onto the page does not run, and the page cannot be framed."""
    client, _ = gateway()
    policy = (await client.get("/")).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


async def test_a_request_without_a_host_is_served() -> None:
    """HTTP/1.0 knows none, and no browser speaks it."""
    request = RawRequest("GET", "/health/live")
    request.say()
    await request.start(create_app(GatewaySettings(), peers=FakePeers().as_peers()))
    assert request.status == 200


@pytest.mark.parametrize(("published", "status"), [("127.0.0.1", 421), ("", 200), ("0.0.0.0", 200)])
async def test_a_container_decides_by_where_it_is_published(published: str, status: int) -> None:
    """It listens on all addresses of its own; where only this machine reaches it, other names are somebody else's."""
    client, _ = gateway(host="0.0.0.0", published_host=published)
    assert (await client.get("/health/live", headers={"host": "attacker.example"})).status_code == status
