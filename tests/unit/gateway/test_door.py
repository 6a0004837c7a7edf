"""Requests that are turned away before anything is begun for them."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from gateway.app import create_app
from gateway.door import Door
from gateway.lifecycle import Lifecycle
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers
from mesh.context import Priority
from mesh.errors import CircuitOpen, Overloaded


class Stand:
    """A door before a gateway."""

    def __init__(self) -> None:
        self.peers = FakePeers()
        self.lifecycle = Lifecycle()
        settings = GatewaySettings()
        self.door = Door.of(settings, self.lifecycle)
        create_app(settings, peers=self.peers.as_peers(), lifecycle=self.lifecycle, door=self.door)

    def ask(self, method: str, path: str, **headers: str) -> bytes | None:
        """What the door says."""
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "headers": raw}
        return self.door.turn_away(scope)


@pytest.fixture
async def stand() -> Stand:
    """With an embedding hop that has no room, on a running loop."""
    made = Stand()
    made.peers.embedder.hop.refusal = Overloaded("Full.", reason="HOP_LIMIT", hop="embedding", retry_after=0.25)
    return made


async def test_a_full_hop_refuses_at_the_door(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    """In the caller's lane and the path's dialect, logged and counted under its route."""
    with caplog.at_level(logging.INFO, logger="gateway.journal"):
        answer = stand.ask("POST", "/v1/embeddings", content_length="10", x_mesh_priority="bulk")
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\nretry-after-ms: 250\r\n" in answer
    assert b'"code":"hop_limit"' in answer
    assert stand.peers.embedder.hop.asked_for == [Priority.BULK]
    line: dict[str, Any] = caplog.records[-1].fields  # type: ignore[attr-defined]
    assert (line["status"], line["outcome"], line["path"]) == (429, "hop_limit", "/v1/embeddings")


async def test_a_full_writer_refuses_in_anthropics_words(stand: Stand) -> None:
    """With the status for busy, and the id in the header that its SDK reads."""
    stand.peers.writer.hop.refusal = Overloaded("Full.", hop="llm", retry_after=2)
    answer = stand.ask("POST", "/v1/messages", content_length="10", x_request_id="mine-7")
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 529 Site is overloaded\r\n")
    assert b"\r\nrequest-id: mine-7\r\n" in answer
    assert b'"type":"overloaded_error"' in answer


async def test_an_open_breaker_refuses_at_the_door(stand: Stand) -> None:
    """With its own status."""
    stand.peers.gpu.hop.refusal = CircuitOpen("Open.", hop="gpu", retry_after=7)
    answer = stand.ask("GET", "/v1/gpu")
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/v1/embeddings", {"content_length": "9000000"}),
        ("POST", "/v1/embeddings", {"transfer_encoding": "chunked"}),
        ("POST", "/v1/embeddings", {"content_length": "1", "expect": "100-continue"}),
        ("HEAD", "/health", {}),
        ("GET", "/health", {}),
        ("POST", "/v2/rerank", {"content_length": "10"}),
        ("GET", "/v1/nothing", {}),
    ],
)
async def test_the_layers_look_at_all_else(stand: Stand, method: str, path: str, headers: dict[str, str]) -> None:
    """What ends the connection, what is always answered, what has room, and what does not exist."""
    assert stand.ask(method, path, **headers) is None


async def test_while_draining_the_layers_answer(stand: Stand) -> None:
    """They say that the connection ends."""
    stand.lifecycle.draining = True
    assert stand.ask("POST", "/v1/embeddings", content_length="10") is None
