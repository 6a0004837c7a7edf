"""The peers: what is asked of them, how their answers are read, and what is installed for them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from bench.peers.catalog import PEERS, Peer, Setting
from bench.peers.install import is_installed, wanted
from ops.local.layout import CHECKOUT

ROWS = np.array([[0.5, -1.0], [0.25, 3.0]], dtype="<f4")
ANSWERS = {
    "infinity (torch)": {"data": [{"embedding": base64.b64encode(row.tobytes()).decode()} for row in ROWS]},
    "infinity (onnx)": {"data": [{"embedding": row.tolist()} for row in ROWS]},
    "LitServe": {"vectors": ROWS.tolist()},
    "BentoML": ROWS.tolist(),
}

each_peer = pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)


def setting(peer: Peer, home: Path) -> Setting:
    """Where nothing is."""
    return Setting(environment=home / peer.environment_name, model=Path("/model"), scratch=home / "scratch", port=7001)


@each_peer
def test_answers_are_read_as_vectors(peer: Peer) -> None:
    """Whatever form a peer answers in, its vectors can be compared with the reference's."""
    assert (peer.vectors(json.dumps(ANSWERS[peer.name]).encode()) == ROWS).all()


@each_peer
def test_every_peer_gets_all_texts_and_its_own_port(peer: Peer, tmp_path: Path) -> None:
    """The texts are in the request, and the server that is started is the one that is asked."""
    assert '["one", "two"]' in json.dumps(peer.body(["one", "two"]))
    given = setting(peer, tmp_path)
    started = peer.started(given)
    assert "7001" in started.command
    assert started.port == 7001
    assert any(str(given.environment) in str(word) for word in started.command)


@each_peer
def test_no_peer_asks_a_hub_or_calls_home(peer: Peer, tmp_path: Path) -> None:
    """What is measured is the serving, and a user's run stays the user's."""
    variables = peer.quiet(setting(peer, tmp_path))
    assert variables["HF_HUB_OFFLINE"] == variables["DO_NOT_TRACK"] == "1"
    assert variables["HF_HOME"].startswith(str(tmp_path / "scratch"))


def test_environments_are_installed_once_with_pinned_versions() -> None:
    """Peers that share an environment share its installation, torch may have an index of its own, and pins exist."""
    environments = wanted("https://index")
    assert [environment.name for environment in environments] == ["infinity", "litserve", "bentoml"]
    for environment in environments:
        assert environment.first_index == "https://index"
        pins = (CHECKOUT / "ops" / "constraints" / f"{environment.constraints}.txt").read_text()
        assert f"\n{environment.first[0]}\n" in pins


@each_peer
def test_a_peer_without_a_stamp_is_not_installed(peer: Peer, tmp_path: Path) -> None:
    """An installation that was cut off counts as none."""
    directory = tmp_path / peer.environment_name
    directory.mkdir()
    assert not is_installed(peer, tmp_path)
    (directory / ".installed-base").touch()
    assert is_installed(peer, tmp_path)
