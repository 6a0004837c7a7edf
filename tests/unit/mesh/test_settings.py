"""What settings promise: names are checked, values are checked, and the message says what to write instead."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict

from mesh.settings import MeshSettings, SettingsError, WorkerSettings


class Sample(MeshSettings):
    """Settings of a made-up process."""

    model_config = SettingsConfigDict(env_prefix="SAMPLE_")
    port: int = Field(8000, ge=1, description="Port.")
    queue_seconds: float = Field(1.0, description="Wait.")


def test_a_misspelt_variable_stops_the_start_and_names_the_right_one() -> None:
    """SAMPLE_PROT is not silently ignored."""
    with pytest.raises(SettingsError, match=r"SAMPLE_PROT.*Did you mean SAMPLE_PORT\?"):
        Sample.load({"SAMPLE_PROT": "1"})


def test_a_name_like_no_other_lists_the_known() -> None:
    """Where nothing is near, all are named."""
    with pytest.raises(SettingsError, match="Known: SAMPLE_PORT, SAMPLE_QUEUE_SECONDS"):
        Sample.load({"SAMPLE_XYZZY": "1"})


def test_a_value_out_of_bounds_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator reads which variable to change."""
    monkeypatch.setenv("SAMPLE_PORT", "0")
    with pytest.raises(SettingsError, match=r"SAMPLE_PORT \(port\)"):
        Sample.load()


@pytest.mark.parametrize("name", ["SAMPLE_SERVICE_URL", "SAMPLE_SERVICE_HOST", "SAMPLE_PORT_50051_TCP", "OTHER"])
def test_what_others_put_beside_ours_is_let_be(name: str) -> None:
    """The gateway's own variables and an orchestrator's share the prefix."""
    assert Sample.load({name: "1"}).port == 8000


def test_settings_do_not_change_after_the_start() -> None:
    """They are read once."""
    sample = Sample.load({})
    with pytest.raises(ValidationError):
        sample.port = 1  # type: ignore[misc]  # that it is read-only is what is tested


def test_every_setting_of_a_worker_is_described() -> None:
    """The configuration reference is made from the descriptions."""
    assert all(field.description for field in WorkerSettings.model_fields.values())
