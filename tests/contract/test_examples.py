"""The examples are programs that run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.settings import GatewaySettings
from gateway.testing import FakePeers, RunningGateway
from mesh.clients.embedding import InputType
from mesh.clients.llm import Role
from mesh.errors import Unavailable
from ops.local.layout import CHECKOUT

LINES = ("A breaker stops calls to a peer that fails.", "Bread.", "It opens after five failures in a row, as told.")


@pytest.fixture
def gateway() -> Iterator[RunningGateway]:
    """A gateway on a socket, over stand-ins."""
    with RunningGateway(GatewaySettings(), FakePeers()) as running:
        yield running


@pytest.fixture
def document(tmp_path: Path) -> Path:
    """Lines, of which the stand-in makes chunks: five, so that one has to be left out."""
    path = tmp_path / "breaker.md"
    path.write_text("\n".join((*LINES, "Another line that is long enough.", "And one more that is about as long.")))
    return path


def ask(gateway: RunningGateway, document: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the example as a user does."""
    return subprocess.run(
        [sys.executable, "examples/ask_document.py", str(document), "When?", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "OPENAI_BASE_URL": f"{gateway.url}/v1"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_document_is_asked_about(gateway: RunningGateway, document: Path) -> None:
    """The model is given the passages nearest to the question, in their order; the answer comes with their headings."""
    done = ask(gateway, document)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Hello!\n\nFrom:\n" + "- Title (page 1)\n" * 4
    options = gateway.peers.chunker.calls[-1].arguments[0]
    assert (options.filename, options.max_tokens) == ("breaker.md", 200)
    asked = gateway.peers.writer.calls[-1].arguments[0]
    assert [message.role for message in asked.messages] == [Role.SYSTEM, Role.USER]
    # The stand-in's vectors are the longer, the longer the text: the shortest is the farthest.
    positions = [asked.messages[0].content.find(line) for line in LINES]
    assert positions[1] == -1
    assert 0 < positions[0] < positions[2]
    assert asked.messages[1].content == "When?"


def test_passages_and_questions_are_embedded_as_such(gateway: RunningGateway, document: Path) -> None:
    """Each by its own input type, passages with their headings."""
    assert ask(gateway, document).returncode == 0
    (passages, of_passages), (question, of_question) = (
        call.arguments for call in gateway.peers.embedder.calls if call.arguments
    )
    assert (passages[1], of_passages.input_type) == ("Title\nBread.", InputType.DOCUMENT)
    assert (list(question), of_question.input_type) == (["When?"], InputType.QUERY)


def test_a_failure_is_the_sdks_error(gateway: RunningGateway, document: Path) -> None:
    """Nothing looks like an answer."""
    gateway.peers.chunker.error = Unavailable("Away.")
    done = ask(gateway, document)
    assert done.returncode != 0
    assert "From:" not in done.stdout
    assert "openai.InternalServerError" in done.stderr
