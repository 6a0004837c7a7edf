"""The LLM worker's settings are read from LLM_ variables and refuse what cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_service.settings import LlmSettings
from mesh.settings import SettingsError


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> LlmSettings:
    """The settings under these variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return LlmSettings.load(variables)


def test_aliases_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list is written as people write lists."""
    assert load(monkeypatch, LLM_MODEL_ALIASES="gpt-4o-mini, chat,").model_aliases == ("gpt-4o-mini", "chat")


def test_an_engine_of_others_needs_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLM_ENGINE=openai without LLM_ENGINE_URL says what is missing."""
    with pytest.raises(SettingsError, match="LLM_ENGINE_URL"):
        load(monkeypatch, LLM_ENGINE="openai")


def test_the_key_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """A printed setting does not show the key."""
    settings = load(
        monkeypatch, LLM_ENGINE="openai", LLM_ENGINE_URL="http://engine/v1", LLM_ENGINE_API_KEY="very-secret"
    )
    assert "very-secret" not in repr(settings)


@pytest.mark.parametrize(
    ("variables", "path"),
    [
        ({}, "var/models/demo-llm"),
        ({"MESH_HOME": "/srv/mesh"}, "/srv/mesh/models/demo-llm"),
        ({"MESH_HOME": "/srv/mesh", "MESH_MODELS": "/models"}, "/models/demo-llm"),
        ({"HOME": "/elsewhere", "MODELS": "/elsewhere"}, "var/models/demo-llm"),
    ],
)
def test_where_the_demo_model_is(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], path: str) -> None:
    """The demo model lives where MESH_MODELS or MESH_HOME says, and a user's HOME means nothing."""
    for name in ("MESH_HOME", "MESH_MODELS"):
        monkeypatch.delenv(name, raising=False)
    assert load(monkeypatch, **variables).demo_path == Path(path)


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "var/models"),
        ({"MESH_MODELS": "/models"}, "/models"),
        ({"MESH_MODELS": "/models", "LOCAL_MODELS_PATH": "/gguf"}, "/gguf"),
    ],
)
def test_where_gguf_files_are(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str) -> None:
    """In a folder of their own where one is named, otherwise among the other models."""
    for name in ("MESH_HOME", "MESH_MODELS", "LOCAL_MODELS_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert load(monkeypatch, **variables).gguf_folder == Path(folder)


def test_layers_for_the_gpu_are_a_number_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """-1 means all of them; less than that means nothing."""
    assert load(monkeypatch).local_model_gpu_layers == -1
    assert load(monkeypatch, LOCAL_MODEL_GPU_LAYERS="20").local_model_gpu_layers == 20
    with pytest.raises(SettingsError, match="LOCAL_MODEL_GPU_LAYERS"):
        load(monkeypatch, LOCAL_MODEL_GPU_LAYERS="-2")


def test_a_misspelt_variable_names_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLM_MODLE stops the start and names LLM_MODEL."""
    with pytest.raises(SettingsError, match=r"LLM_MODEL\b"):
        load(monkeypatch, LLM_MODLE="x")
