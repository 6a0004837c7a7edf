"""Several language models, each with a worker of its own: every name reaches its model, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.app import create_app
from gateway.settings import GatewaySettings
from gateway.testing import CHAT_MODEL, FakePeers
from gateway.testing.peers import FakeHop, FakeWriter
from mesh.errors import Overloaded, Unavailable
from mesh.settings import SettingsError

CHAT = "/v1/chat/completions"


@pytest.fixture
def peers() -> FakePeers:
    """One writer for everybody and two that are models of their own."""
    small = FakeWriter(FakeHop("llm:small"), model="org/small-1b")
    large = FakeWriter(FakeHop("llm:large"), model="org/large-70b")
    return FakePeers(writers={"small": small, "large": large})


@pytest.fixture
async def client(peers: FakePeers) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that knows the three, and an alias."""
    settings = GatewaySettings.model_validate({"models": {"aliases": {"gpt-4o-mini": "small"}}})
    app = create_app(settings, peers=peers.as_peers())
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as made:
            yield made


async def ask(client: httpx.AsyncClient, model: str, path: str = CHAT) -> httpx.Response:
    """One answer of a model."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
    return await client.post(path, json=body)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("", CHAT_MODEL),
        (CHAT_MODEL, CHAT_MODEL),
        ("small", "org/small-1b"),
        ("org/small-1b", "org/small-1b"),
        ("large", "org/large-70b"),
        ("gpt-4o-mini", "org/small-1b"),
    ],
)
async def test_every_name_reaches_its_model(client: httpx.AsyncClient, name: str, model: str) -> None:
    """The names from the settings, the workers' own, aliases, and none."""
    assert (await ask(client, name)).json()["model"] == model


async def test_anthropics_dialect_finds_them_too(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Messages and counts go to the same worker."""
    assert (await ask(client, "large", "/v1/messages")).json()["model"] == "org/large-70b"
    await ask(client, "large", "/v1/messages/count_tokens")
    assert len(peers.writers["large"].calls) == 2


async def test_an_unknown_name_is_404_with_all_known_ones(client: httpx.AsyncClient) -> None:
    """Of every worker."""
    answer = await ask(client, "medium")
    assert answer.status_code == 404
    for name in (CHAT_MODEL, "small", "org/small-1b", "large"):
        assert name in answer.json()["error"]["message"]


async def test_models_of_all_workers_are_listed(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Each by all its names; one that does not answer is left out, and hides nobody."""
    peers.writers["large"].error = Unavailable("Away.")
    cards = {card["id"]: card["root"] for card in (await client.get("/v1/models")).json()["data"]}
    assert {name: cards.get(name) for name in (CHAT_MODEL, "small", "gpt-4o-mini", "large")} == {
        CHAT_MODEL: CHAT_MODEL,
        "small": "org/small-1b",
        "gpt-4o-mini": "org/small-1b",
        "large": None,
    }


async def test_a_model_that_several_workers_serve_is_listed_once(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """And its own name reaches the first of them: the one for everybody, where that serves it."""
    peers.writers["large"].model = CHAT_MODEL
    names = [card["id"] for card in (await client.get("/v1/models")).json()["data"]]
    assert len(names) == len(set(names))
    assert (await ask(client, CHAT_MODEL)).status_code == 200
    assert [bool(call.arguments) for call in peers.writer.calls].count(True) == 1


async def test_a_crowd_asks_the_workers_for_their_names_once(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """However many come with a name that nobody knows yet."""
    answers = await asyncio.gather(*(ask(client, "org/small-1b") for _ in range(20)))
    assert [answer.status_code for answer in answers] == [200] * 20
    assert len(peers.writers["large"].calls) == 1


async def test_a_model_whose_worker_is_away_is_not_unknown(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """503 for its name; 503 as well for a name that it alone may know; the others go on."""
    peers.writers["large"].error = Unavailable("Away.")
    assert (await ask(client, "large")).status_code == 503
    assert (await ask(client, "org/large-70b")).status_code == 503
    assert (await ask(client, "org/small-1b")).status_code == 200
    peers.writers["large"].error = None
    assert (await ask(client, "org/large-70b")).status_code == 200
    peers.writers["large"].error = Unavailable("Away.")
    assert (await ask(client, "org/large-70b")).status_code == 503


async def test_a_name_that_a_worker_gave_up_is_forgotten(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """And found where it is served now."""
    assert (await ask(client, "org/small-1b")).status_code == 200
    peers.writers["small"].model, peers.writers["large"].model = "org/tiny", "org/small-1b"
    assert (await ask(client, "org/small-1b")).status_code == 404
    assert (await ask(client, "org/small-1b")).json()["model"] == "org/small-1b"
    assert peers.writers["large"].calls[-1].arguments


async def test_one_full_hop_does_not_close_the_others(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Before the body is read nobody knows the model: only where no hop has room is everybody refused."""
    peers.writers["small"].hop.refusal = Overloaded("Full.")
    peers.writer.hop.refusal = Overloaded("Full.")
    assert (await ask(client, "large")).status_code == 200
    peers.writers["large"].hop.refusal = Overloaded("Full.")
    assert (await ask(client, "large")).status_code == 429


async def test_the_status_tells_every_hop(client: httpx.AsyncClient) -> None:
    """By names of their own, each with what it serves."""
    hops = {hop["name"]: hop for hop in (await client.get("/status")).json()["hops"]}
    assert {"llm", "llm:small", "llm:large"} <= set(hops)
    assert hops["llm:small"]["serves"]["models"][0]["name"] == "org/small-1b"
    assert "LLM_MODEL" in hops["llm:small"]["choose_another"]


def test_models_have_urls_of_their_own() -> None:
    """Where there is no url for all others, only the models are reached; misspelt keys are named."""
    models = {"small": {"url": "a:1"}, "large": {"url": "b:1,c:1"}}
    llm = GatewaySettings.model_validate({"services": {"llm": {"url": None, "models": models}}}).services.llm
    assert (llm.url, {name: model.url for name, model in llm.models.items()}) == (
        None,
        {"small": "a:1", "large": "b:1,c:1"},
    )
    assert GatewaySettings().services.llm.url == "127.0.0.1:50054"
    with pytest.raises(SettingsError, match="a url, or models"):
        GatewaySettings.load({}, services={"llm": {"url": None}})
    with pytest.raises(SettingsError, match=r"services.llm.models.small.rul.*url"):
        GatewaySettings.load({}, services={"llm": {"models": {"small": {"url": "a:1", "rul": "b:1"}}}})


def test_models_can_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As every setting, above the file."""
    monkeypatch.setenv("GATEWAY_SERVICES__LLM__MODELS__small__URL", "a:1")
    settings = GatewaySettings.load({"GATEWAY_SERVICES__LLM__MODELS__small__URL": "a:1"})
    assert settings.services.llm.models["small"].url == "a:1"
