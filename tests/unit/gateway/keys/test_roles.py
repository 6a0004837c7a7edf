"""Role × route: every route that the app has, asked for with every kind of key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.routing import Route

from gateway.app import create_app
from gateway.keys.book import changing
from gateway.keys.form import digest_of, new_key
from gateway.keys.records import KeyRecord, Limits, Role
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers, RawRequest

ANYBODY, EITHER, INFERENCE, OPERATOR = "anybody", "either", "inference", "operator"
# What each route is for, said a second time: a route that nobody has thought about here fails the test.
ROUTES = {
    "/": ANYBODY,
    "/docs": ANYBODY,
    "/embed": INFERENCE,
    "/health": ANYBODY,
    "/health/live": ANYBODY,
    "/health/ready": ANYBODY,
    "/info": EITHER,
    "/metrics": OPERATOR,
    "/openapi.json": EITHER,
    "/pages/{name}": ANYBODY,
    "/rerank": INFERENCE,
    "/status": OPERATOR,
    "/status/stream": OPERATOR,
    "/try": ANYBODY,
    "/v1/chat/completions": INFERENCE,
    "/v1/chunk": INFERENCE,
    "/v1/completions": INFERENCE,
    "/v1/embeddings": INFERENCE,
    "/v1/gpu": OPERATOR,
    "/v1/gpu/stream": OPERATOR,
    "/v1/messages": INFERENCE,
    "/v1/messages/count_tokens": INFERENCE,
    "/v1/models": EITHER,
    "/v1/models/{id:path}": EITHER,
    "/v1/rerank": INFERENCE,
    "/v2/rerank": INFERENCE,
}
LET_IN = {
    ANYBODY: {"none", "garbage", "unknown", "revoked", "expired", "inference", "operator", "both"},
    EITHER: {"inference", "operator", "both"},
    INFERENCE: {"inference", "both"},
    OPERATOR: {"operator", "both"},
}
FORBIDDEN = {INFERENCE: {"operator"}, OPERATOR: {"inference"}}
ROLES = {"inference": [Role.INFERENCE], "operator": [Role.OPERATOR], "both": list(Role)}


def routes() -> Iterator[tuple[str, str]]:
    """Method and path of everything that the app serves."""
    app = create_app(GatewaySettings(), peers=FakePeers().as_peers())
    for route in app.router.routes:
        assert isinstance(route, Route), f"{route} is no plain route: teach this test to ask for it"
        for method in sorted(route.methods or ()):
            yield method, route.path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A file with a key of every kind, and what a client sends for each."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    sent = {"none": "", "garbage": "Bearer none", "unknown": f"Bearer {new_key()[0]}"}
    now = int(time.time())
    kinds = {**{name: {} for name in ROLES}, "revoked": {"revoked": now - 9}, "expired": {"expires": now - 9}}
    with changing(path) as records:
        for kind, ends in kinds.items():
            key, key_id = new_key()
            records.append(
                KeyRecord(
                    id=key_id,
                    tenant=kind,
                    roles=frozenset(ROLES.get(kind, Role)),
                    digest=digest_of(key),
                    account=key_id,
                    limits=Limits(),
                    created=now - 99,
                    **ends,
                )
            )
            sent[kind] = f"Bearer {key}"
    return path, sent


def test_every_route_has_a_row() -> None:
    """A new route is decided about before it is served; a row without a route is old."""
    assert {path for _, path in routes()} == set(ROUTES)


@pytest.mark.parametrize("kind", sorted(LET_IN[ANYBODY]))
@pytest.mark.parametrize(("method", "path"), sorted(set(routes())))
async def test_a_route_opens_to_its_role_alone(
    method: str, path: str, kind: str, keys: tuple[Path, dict[str, str]]
) -> None:
    """401 to who has no good key, 403 to who has one of the other role; everybody else reaches the route."""
    file, sent = keys
    app = create_app(GatewaySettings.model_validate({"keys": {"file": file}}), peers=FakePeers().as_peers())
    url = path.replace("{name}", "mesh.css").replace("{id:path}", "a/model")
    request = RawRequest(method, url, {"authorization": sent[kind]} if sent[kind] else {})
    request.say(b"{")
    answering = request.start(app)
    while request.status is None:
        assert not answering.done(), "it was not answered"
        await asyncio.sleep(0)
    request.leave()  # some answers are streams without end
    await answering
    needed = ROUTES[path]
    if kind in LET_IN[needed]:
        assert request.status not in {401, 403}
    elif kind in FORBIDDEN.get(needed, ()):
        assert request.status == 403
    else:
        assert request.status == 401
        asked = [value for name, value in request.sent[0]["headers"] if name == b"www-authenticate"]
        assert asked == [b'Bearer realm="mesh"', b'Basic realm="mesh", charset="UTF-8"']


@pytest.mark.parametrize(
    ("path", "roles"),
    [("/v1/embedings", INFERENCE), ("/v2/nothing", INFERENCE), ("/admin", OPERATOR), ("/v1/gpu/7", OPERATOR),
     ("/V1/embeddings", OPERATOR), ("//status", OPERATOR)],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["none", "inference", "operator"])
async def test_what_is_not_there_tells_nothing_to_strangers(
    path: str, roles: str, kind: str, keys: tuple[Path, dict[str, str]]
) -> None:
    """Without a key nobody learns which routes there are; with one, a typing error is told as such."""
    file, sent = keys
    app = create_app(GatewaySettings.model_validate({"keys": {"file": file}}), peers=FakePeers().as_peers())
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport) as client:
        answer = await client.get(f"http://gateway{path}", headers={"authorization": sent[kind]})
    expected = 401 if kind == "none" else 404 if kind == roles else 403
    assert answer.status_code == expected


@pytest.mark.parametrize("behind", ["%0A", "%0D", "%00", "%20", "/", "//", "%2F", ";a", "%3Fa"])
@pytest.mark.parametrize("kind", ["none", "inference", "operator"])
async def test_nearly_the_same_path_is_no_way_around_a_role(
    behind: str, kind: str, keys: tuple[Path, dict[str, str]]
) -> None:
    """What serves a path decides about it by the same letters as what guards it."""
    file, sent = keys
    app = create_app(GatewaySettings.model_validate({"keys": {"file": file}}), peers=FakePeers().as_peers())
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport) as client:
        # FastAPI serves its document by itself; nearly its path is an operator's, as all that nobody names.
        for path in sorted(path for path in ROUTES if "{" not in path and path not in {"/", "/openapi.json"}):
            for method in ("GET", "POST"):
                url = f"http://gateway{path}{behind}"
                answer = await client.request(method, url, headers={"authorization": sent[kind]})
                served_as_a_model = answer.status_code in {404, 405} and path == "/v1/models"
                assert answer.status_code in {401, 403, 404} or served_as_a_model, (method, url, answer.status_code)


@pytest.mark.parametrize("path", sorted(ROUTES))
async def test_without_keys_everything_is_open(path: str) -> None:
    """Off by default: on loopback nobody is asked for a key, and one that is sent anyway is not looked at."""
    app = create_app(GatewaySettings(), peers=FakePeers().as_peers())
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        headers = {"authorization": "Bearer none", "x-request-timeout-ms": "none"}
        answer = await client.request("POST", path.replace("{id:path}", "a"), headers=headers)
    assert answer.status_code not in {401, 403}
