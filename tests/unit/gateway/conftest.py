"""A gateway without sockets: real routes and layers over stand-ins for the workers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from fastapi import FastAPI

from gateway.app import create_app
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Settings come from the test alone: neither from the shell nor from the repository's own file."""
    for name in ("GATEWAY_CONFIG", "TIKTOKEN_CACHE_DIR", "EMBEDDING_SERVICE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(str(tmp_path))


@pytest.fixture
def settings() -> GatewaySettings:
    """The defaults, with one alias."""
    return GatewaySettings.model_validate(
        {"models": {"aliases": {"text-embedding-3-small": "sentence-transformers/all-MiniLM-L6-v2"}}}
    )


@pytest.fixture
def peers() -> FakePeers:
    """Stand-ins for the workers."""
    return FakePeers()


@pytest.fixture
def app(settings: GatewaySettings, peers: FakePeers) -> FastAPI:
    """The gateway."""
    return create_app(settings, peers=peers.as_peers())


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Talks to the gateway without a socket."""
    async with connected(app) as http:
        yield http


def connected(app: Callable[..., object]) -> httpx.AsyncClient:
    """A client of an app."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")
