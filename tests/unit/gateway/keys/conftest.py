"""Gateways that ask for keys, without sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.app import create_app
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers
from gateway.testing.keys import KeyFile

Open = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings come from the test alone."""
    monkeypatch.delenv("GATEWAY_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def book(tmp_path: Path) -> KeyFile:
    """A file of keys."""
    return KeyFile(tmp_path / "keys.json")


@pytest.fixture
def peers() -> FakePeers:
    """Stand-ins for the workers."""
    return FakePeers()


@pytest.fixture
def open_gateway(book: KeyFile, peers: FakePeers) -> Open:
    """Builds a gateway that asks for the keys of the file; further settings of the section ``keys`` by name."""

    @asynccontextmanager
    async def opened(**keys: Any) -> AsyncIterator[httpx.AsyncClient]:
        settings = GatewaySettings.model_validate({"keys": {"file": book.path, **keys}})
        app = create_app(settings, peers=peers.as_peers())
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client

    return opened
