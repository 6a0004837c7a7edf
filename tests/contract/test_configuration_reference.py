"""The configuration reference says what the settings models say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from gateway.settings import GatewaySettings
from llm_service.settings import LlmSettings
from mesh.tls.settings import TlsSettings
from ops.docs.configuration import REFERENCE, main, render, settings_of
from ops.docs.local_variables import LOCAL_VARIABLES

ROOT = Path(__file__).parents[2]

# Set by the scripts for what they start; nobody else is meant to.
_INTERNAL = {"MESH_RUN_ID", "MESH_VLLM_WHY_NOT"}


def test_reference_is_current() -> None:
    """The committed reference is what the models generate."""
    assert REFERENCE.read_text(encoding="utf-8") == render()


def test_check_tells_an_outdated_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--check fails on a file that differs, leaves it as it is, and passes once it was written anew."""
    stale = tmp_path / "configuration.md"
    stale.write_text("old", encoding="utf-8")
    monkeypatch.setattr("ops.docs.configuration.REFERENCE", stale)
    assert main(["--check"]) == 1
    assert stale.read_text(encoding="utf-8") == "old"
    assert main([]) == 0
    assert main(["--check"]) == 0


def test_nested_settings_carry_key_variable_and_default() -> None:
    """A section's setting is named as the file and the environment name it, with the default that holds for it."""
    found = {each.key: each for each in settings_of(GatewaySettings, prefix="GATEWAY_")}
    assert found["services.llm.url"].variable == "GATEWAY_SERVICES__LLM__URL"
    assert found["services.llm.url"].default == "`127.0.0.1:50054`"
    assert found["limits.max_inputs"].kind == "whole number, 1 to 65536"


def test_every_variable_reaches_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that the reference names are those that the models read."""
    monkeypatch.setenv("GATEWAY_SERVICES__LLM__URL", "elsewhere:1")
    monkeypatch.setenv("MESH_HOME", "/somewhere")
    assert GatewaySettings.load().services.llm.url == "elsewhere:1"
    named = {each.key: each.variable for each in settings_of(LlmSettings, prefix="LLM_")}
    assert named["mesh_home"] == "MESH_HOME"
    assert LlmSettings.load().mesh_home == Path("/somewhere")


def test_setting_without_description_is_refused() -> None:
    """A setting that nobody described cannot get into the reference."""

    class Silent(BaseModel):
        quiet: int = Field(1)

    with pytest.raises(ValueError, match=r"Silent\.quiet has no description"):
        list(settings_of(Silent, prefix=""))


def test_variables_of_the_scripts_are_all_there() -> None:
    """Every MESH_ variable that the scripts read is in the reference, and the other way round."""
    sources = [*ROOT.glob("ops/local/*.py"), *ROOT.glob("scripts/*.sh")]
    read = {name for source in sources for name in re.findall(r"\bMESH_[A-Z_]+\b", source.read_text(encoding="utf-8"))}
    named_elsewhere = {each.variable for each in settings_of(TlsSettings, prefix="MESH_TLS_")}
    assert read - _INTERNAL - named_elsewhere == {variable.name for variable in LOCAL_VARIABLES}
