"""The configuration of before is read as the migration guide prints it, and the mesh's is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from previous.settings import ConfigurationError, PreviousSettings

ROOT = Path(__file__).parents[3]
BEFORE = """
gateway:
  chunking:
    semantic_chunker:
      gpu_enabled: true
      model_name: "sentence-transformers/all-MiniLM-L6-v2"

  embedding:
    gpu_enabled: false
    model_name: "/models/ours"
gpu:
  enabled: true
  device_id: 1
"""


def written(folder: Path, text: str) -> Path:
    """A configuration file that says ``text``."""
    path = folder / "gateway.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_keys_of_before_are_read(tmp_path: Path) -> None:
    """What the guide prints as "before" is taken as it stands, the section of the GPU at the top of the file."""
    settings = PreviousSettings.load(written(tmp_path, BEFORE), {})
    assert settings.chunking.semantic_chunker.gpu_enabled
    assert settings.embedding.model_name == "/models/ours"
    assert not settings.embedding.gpu_enabled
    assert settings.gpu.device_id == 1


def test_a_file_that_is_not_there_means_the_defaults(tmp_path: Path) -> None:
    """A team that had no file goes back without one."""
    assert PreviousSettings.load(tmp_path / "none.yaml", {}) == PreviousSettings()


@pytest.mark.parametrize(("value", "enabled"), [("true", True), ("false", False)])
def test_gpu_enabled_stands_above_the_file(tmp_path: Path, value: str, enabled: bool) -> None:
    """The variable that the guide's Compose file of before sets decides."""
    settings = PreviousSettings.load(written(tmp_path, BEFORE), {"GPU_ENABLED": value})
    assert settings.gpu.enabled is enabled
    assert settings.gpu.device_id == 1


def test_a_switch_that_is_off_means_the_cpu() -> None:
    """Neither a capability that may not use the GPU nor a machine whose GPU is off asks torch for one."""
    settings = PreviousSettings()
    assert settings.device(gpu_enabled=False) == "cpu"
    off = settings.model_copy(update={"gpu": settings.gpu.model_copy(update={"enabled": False})})
    assert off.device(gpu_enabled=True) == "cpu"


def test_the_configuration_of_the_mesh_is_refused_with_the_way_back() -> None:
    """Who forgot to restore the copy hears the command that does it, and not a process that ignores its settings."""
    with pytest.raises(ConfigurationError, match=r"cp config/gateway\.yaml\.backup config/gateway\.yaml"):
        PreviousSettings.load(ROOT / "config" / "gateway.yaml", {})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("gateway: {embedding: {modle_name: x}}", "embedding.modle_name"),
        ("gateway: {gpu: {device_id: -1}}", "gpu.device_id"),
        ("gateway: [1]", "mapping"),
        ("a: [", "YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, named: str) -> None:
    """A misspelt key, a wrong value and a broken file stop the start with their place."""
    with pytest.raises(ConfigurationError, match=named.replace(".", r"\.")):
        PreviousSettings.load(written(tmp_path, text), {})


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    """A value of GPU_ENABLED that is neither yes nor no is not taken for one of them."""
    with pytest.raises(ConfigurationError, match="GPU_ENABLED"):
        PreviousSettings.load(tmp_path / "none.yaml", {"GPU_ENABLED": "perhaps"})
