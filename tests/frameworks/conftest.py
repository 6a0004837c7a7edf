"""Frameworks as their users install them, on OpenAI's clients of their choice, against a running gateway.

They live in an environment of their own, which ``scripts/test.sh frameworks`` makes: LlamaIndex does not go with the
version of OpenAI's SDK that the other tests use. Elsewhere there is nothing to collect here.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.settings import GatewaySettings
from gateway.testing import CHAT_MODEL, FakePeers, RunningGateway
from mesh.generation import Ending, FinishReason, Piece, ToolCallDelta

# The documented switches, read when the frameworks are imported.
os.environ |= {"HAYSTACK_TELEMETRY_ENABLED": "False", "LANGSMITH_TRACING": "false", "LANGCHAIN_TRACING_V2": "false"}

_HERE = importlib.util.find_spec("llama_index") is not None
collect_ignore_glob = [] if _HERE else ["test_*.py"]

KNOWN_MODEL = "gpt-4o-mini"
"""An alias of the served model: LlamaIndex's client for OpenAI takes no name that OpenAI does not have."""


def pytest_configure(config: pytest.Config) -> None:
    """Their clients are not closed, by themselves nor as their documentation uses them; that is no fault of ours."""
    if _HERE:
        config.addinivalue_line("filterwarnings", "ignore::ResourceWarning")
        warnings.filterwarnings("ignore", category=ResourceWarning)  # for what is collected after the last test


@pytest.fixture(autouse=True)
def nobody_else_is_called(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails the test where a framework asks for any address but this machine's."""
    strangers: list[Any] = []
    resolve = socket.getaddrinfo

    def watched(host: Any, *arguments: Any, **options: Any) -> Any:
        if host not in {"127.0.0.1", "localhost", None}:
            strangers.append(host)
            raise socket.gaierror(socket.EAI_NONAME, "Nobody is asked for from here.")
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    yield
    assert strangers == []


@pytest.fixture
def gateway() -> Iterator[RunningGateway]:
    """A gateway on a socket, over stand-ins that answer "Hello!"."""
    settings = GatewaySettings.model_validate({"models": {"aliases": {KNOWN_MODEL: CHAT_MODEL}}})
    with RunningGateway(settings, FakePeers()) as running:
        yield running


@pytest.fixture
def calling(gateway: RunningGateway) -> RunningGateway:
    """The same, but the model calls ``look(at=3)``, piece by piece."""
    writer = gateway.peers.writer
    writer.pieces = (
        Piece(tool_calls=(ToolCallDelta(0, "call_7", "look"),)),
        Piece(tool_calls=(ToolCallDelta(0, arguments='{"at": '),)),
        Piece(tool_calls=(ToolCallDelta(0, arguments="3}"),)),
    )
    writer.endings = (Ending(FinishReason.TOOL_CALLS),)
    return gateway
