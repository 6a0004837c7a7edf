"""Which reranker is taken, with and without a hub."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from inference import hub
from inference.card import ModelKind
from inference.engines.choice import EnginePlan
from inference.models import DEFAULT_CROSS_ENCODER, DEFAULT_EMBEDDING_MODEL
from inference.rerankers import Method, RerankerRequest, load_reranker
from inference.testing import write_model
from mesh.errors import ModelUnusable

CLOSED = "http://127.0.0.1:9"


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EnginePlan:
    """An engine that does not exist, an empty hub cache and no hub: what is reached is the choice of the model."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    return EnginePlan(models_dir=tmp_path / "models", engine="none")


def refusal(request: RerankerRequest, plan: EnginePlan) -> tuple[ModelUnusable, list[str]]:
    """How loading ends, and what was reported on the way."""
    lines: list[str] = []
    with pytest.raises(ModelUnusable) as refused:
        load_reranker(request, plan, report=lines.append)
    return refused.value, lines


def test_without_a_hub_the_default_interacts_late(plan: EnginePlan) -> None:
    """Nothing named, cached or in reach: the embedding model reranks, at once, and the log says how to do better."""
    started = time.monotonic()
    _, lines = refusal(RerankerRequest(setting="RERANKING_MODEL"), plan)
    assert time.monotonic() - started < hub.REACH_SECONDS + 3
    assert DEFAULT_CROSS_ENCODER in lines[0]
    assert DEFAULT_EMBEDDING_MODEL in lines[0]
    assert "RERANKING_MODEL" in lines[0]


def test_a_cached_cross_encoder_is_the_default(plan: EnginePlan, tmp_path: Path) -> None:
    """What was downloaded once is used without asking the hub."""
    from inference.models import PINNED_REVISIONS

    repository = tmp_path / "hub" / f"models--{DEFAULT_CROSS_ENCODER.replace('/', '--')}"
    snapshot = repository / "snapshots" / PINNED_REVISIONS[DEFAULT_CROSS_ENCODER]
    write_model(snapshot, architecture="BertForSequenceClassification", num_labels=1)
    error, lines = refusal(RerankerRequest(), plan)
    assert lines[0].startswith(f"{DEFAULT_CROSS_ENCODER}: found (hub-cache")
    assert error.reason == "ENGINE_UNKNOWN"


def test_a_pinned_method_is_not_replaced(plan: EnginePlan) -> None:
    """Who asks for a cross-encoder gets an error without one, not a weaker ranking."""
    error, _ = refusal(RerankerRequest(method=Method.CROSS_ENCODER), plan)
    assert error.reason == "HUB_UNREACHABLE"


def test_a_named_encoder_is_refused_as_cross_encoder(plan: EnginePlan, tmp_path: Path) -> None:
    """A model without a ranking head has to be asked for late interaction in so many words."""
    path = str(write_model(tmp_path / "encoder"))
    assert refusal(RerankerRequest(name=path), plan)[0].reason == "MODEL_WRONG_KIND"
    error, lines = refusal(RerankerRequest(name=path, method=Method.LATE_INTERACTION), plan)
    assert error.reason == "ENGINE_UNKNOWN"
    assert lines[0].startswith("late-interaction/encoder: found (path")


def test_several_labels_are_refused(plan: EnginePlan, tmp_path: Path) -> None:
    """Which of two labels means relevant is written nowhere."""
    path = write_model(tmp_path / "pair", architecture="BertForSequenceClassification", num_labels=2)
    assert refusal(RerankerRequest(name=str(path)), plan)[0].reason == "MODEL_WRONG_KIND"


def test_names_and_kinds() -> None:
    """An encoder that reranks is served under a name of its own unless the operator gives one."""
    late = RerankerRequest(name="owner/encoder").model(Method.LATE_INTERACTION)
    assert (late.served_as, late.kind) == ("late-interaction/encoder", ModelKind.EMBEDDING)
    named = RerankerRequest(name="owner/encoder", served_as="mine").model(Method.LATE_INTERACTION)
    assert named.served_as == "mine"
    pair = RerankerRequest(name="owner/pair").model(Method.CROSS_ENCODER)
    assert (pair.served_as, pair.kind) == ("", ModelKind.CROSS_ENCODER)


def test_reach_of_the_hub(monkeypatch: pytest.MonkeyPatch, plan: EnginePlan) -> None:
    """A closed port and a wish to stay offline are out of reach; what a proxy can reach only trying can tell."""
    assert not hub.in_reach()
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert hub.in_reach()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub.in_reach()
