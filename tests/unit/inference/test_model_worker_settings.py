"""The settings that both model workers share."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedding_service.settings import EmbeddingSettings
from inference.settings import ModelWorkerSettings
from mesh.serving.watchdog import POLL_SECONDS
from mesh.settings import SettingsError
from reranking_service.settings import RerankingSettings

BOTH = pytest.mark.parametrize("settings", [EmbeddingSettings, RerankingSettings])


@BOTH
def test_defaults(settings: type[ModelWorkerSettings]) -> None:
    """Without a variable set, the engine is chosen and the queue holds the largest request."""
    made = settings.load({})
    assert (made.engine_plan.engine, made.engine_plan.device) == ("auto", "auto")
    assert made.max_queued_tokens >= made.max_tokens_per_request


@BOTH
def test_a_queue_smaller_than_a_request_is_refused(settings: type[ModelWorkerSettings]) -> None:
    """The largest requests would never run, and nobody would know why."""
    with pytest.raises(SettingsError, match="max_queued_tokens"):
        settings.load({}, max_queued_tokens=10, max_tokens_per_request=11)


@BOTH
def test_a_misspelt_variable_names_the_right_one(settings: type[ModelWorkerSettings]) -> None:
    """A wish that is not understood stops the start."""
    with pytest.raises(SettingsError, match=settings.variable("min_cosine")):
        settings.load({settings.variable("min_cosin"): "0.9"})


def test_where_models_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's own setting, else MESH_MODELS, else below MESH_HOME."""
    monkeypatch.setenv("MESH_HOME", "/home-of-mesh")
    monkeypatch.delenv("MESH_MODELS", raising=False)
    assert EmbeddingSettings.load({}).engine_plan.models_dir == Path("/home-of-mesh/models")
    monkeypatch.setenv("MESH_MODELS", "/shared")
    assert EmbeddingSettings.load({}).engine_plan.models_dir == Path("/shared")
    assert EmbeddingSettings.load({}, models_dir=Path("/own")).engine_plan.models_dir == Path("/own")


def test_unknown_methods_are_refused() -> None:
    """The three ways are named in the error."""
    with pytest.raises(SettingsError, match="late-interaction"):
        RerankingSettings.load({}, method="bm25")


def test_an_engine_that_hangs_is_found_within_ten_seconds_by_the_defaults() -> None:
    """At work by the watchdog, idle by the canary, one look later at the most."""
    settings = EmbeddingSettings.load({})
    assert settings.watchdog_seconds + POLL_SECONDS < 10
    assert settings.canary_interval_seconds + settings.canary_seconds + 2 * POLL_SECONDS < 10
