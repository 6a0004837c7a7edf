"""A model's name leads to its files: the demo, a directory, the hub's cache; what is nowhere is explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_service.models import DEMO_NAME, locate
from mesh.errors import ModelUnusable

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_demo_has_its_own_name(model_path: Path) -> None:
    """The demo model is served under a name that says what it is."""
    found = locate("demo", "", demo_path=model_path)
    assert (DEMO_NAME, "demo", model_path) == (found.name, found.source, found.path)


def test_a_demo_that_was_not_made_says_how(tmp_path: Path) -> None:
    """Without the demo model the message names the script that makes it."""
    with pytest.raises(ModelUnusable, match=r"ops/demo_llm/train\.py"):
        locate("demo", "", demo_path=tmp_path / "missing")


def test_a_directory_is_served_under_its_name(model_path: Path, tmp_path: Path) -> None:
    """A local model is called by its directory's name."""
    found = locate(str(model_path), "", demo_path=tmp_path)
    assert (found.name, found.source) == ("tiny-chat", "path")


@pytest.mark.parametrize(
    "model", ["/nowhere/at/all", "./nowhere", "~/nowhere-at-all", "a/b/c", "owner/mo del", "../up"]
)
def test_neither_path_nor_name(model: str, tmp_path: Path) -> None:
    """What looks like a path and is none never goes to the hub."""
    with pytest.raises(ModelUnusable, match="neither a directory"):
        locate(model, "", demo_path=tmp_path)


def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--owner--model" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    refs = tmp_path / "models--owner--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    return snapshot


def test_the_cache_serves_without_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model in the hub's cache is used offline, under its hub name and commit."""
    snapshot = _cache(monkeypatch, tmp_path)
    (snapshot / "model.safetensors").write_bytes(b"")
    found = locate("owner/model", "", demo_path=tmp_path)
    assert (found.name, found.source, found.revision) == ("owner/model", "hub-cache", COMMIT)


def test_a_hub_out_of_reach_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With neither cache nor hub the message says what to set."""
    _cache(monkeypatch, tmp_path)
    with pytest.raises(ModelUnusable, match="set LLM_MODEL"):
        locate("owner/other", "", demo_path=tmp_path)
