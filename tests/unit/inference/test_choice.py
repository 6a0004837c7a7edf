"""Which engine is chosen, and that a choice is remembered."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from inference import machine
from inference.engines import Engine, Head, amx, checks, choice
from inference.engines.choice import EnginePlan, Job, Verdict, choose, open_engine
from inference.padding import pad
from inference.testing import FakeEngine, fake_loaded_model
from inference.tokenizing import TokenizedInput
from mesh.errors import ModelUnusable

PLAN = EnginePlan(models_dir=Path("unused"), device="cpu")


def verdict(engine: str, texts_per_second: float, min_cosine: float = 1.0) -> Verdict:
    """How one engine did."""
    return Verdict(
        engine=engine,
        device="cpu",
        min_cosine=min_cosine,
        mean_cosine=min_cosine,
        texts_per_second=texts_per_second,
        tokens_per_second=17 * texts_per_second,
        batch_tokens=512,
    )


def test_the_fastest_faithful_engine_wins() -> None:
    """Speed counts among the faithful only."""
    measured = [verdict("onnxruntime", 100), verdict("torch-bf16", 300), verdict("torch", 900, min_cosine=0.9)]
    assert choose(measured, PLAN, name="m").engine == "torch-bf16"


def test_the_lighter_engine_wins_a_near_tie() -> None:
    """Torch has to be clearly faster to be worth its start and its memory."""
    measured = [verdict("onnxruntime", 100), verdict("torch-bf16", 105)]
    assert choose(measured, PLAN, name="m").engine == "onnxruntime"


def test_a_lower_demand_admits_more_engines() -> None:
    """What counts as faithful is the operator's choice."""
    measured = [verdict("torch", 100), verdict("torch-bf16", 300, min_cosine=0.995)]
    assert choose(measured, PLAN, name="m").engine == "torch"
    assert choose(measured, replace(PLAN, min_cosine=0.99), name="m").engine == "torch-bf16"


def test_a_pinned_engine_wins_even_where_it_is_not_faithful() -> None:
    """The operator decides; the log and Info say how faithful it is."""
    plan = replace(PLAN, engine="torch-bf16")
    assert choose([verdict("torch-bf16", 1, min_cosine=0.5)], plan, name="m").engine == "torch-bf16"


@pytest.mark.parametrize("measured", [[], [verdict("torch", 1, min_cosine=0.1)]])
def test_no_faithful_engine_is_said(measured: list[Verdict]) -> None:
    """A model that no engine runs faithfully is not served."""
    with pytest.raises(ModelUnusable) as caught:
        choose(measured, PLAN, name="m")
    assert caught.value.reason == "ENGINE_UNUSABLE"


def test_nan_is_not_faithful() -> None:
    """An engine that returns NaN agrees with nothing."""
    good = [np.ones(4, dtype=np.float32)]
    assert checks.agreement(good, [np.full(4, np.nan, dtype=np.float32)])[0] == -1.0


def test_padding_is_not_compared() -> None:
    """What an engine writes into padding says nothing about its fidelity."""
    batch = pad([TokenizedInput((1, 2)), TokenizedInput((1,))])
    one, other = np.ones((2, 2, 3), dtype=np.float32), np.ones((2, 2, 3), dtype=np.float32)
    other[1, 1] = -1
    rows = [checks.comparable(states, batch, Head.TOKENS) for states in (one, other)]
    assert checks.agreement(*rows)[0] == pytest.approx(1.0)


def test_scores_agree_where_no_order_changes() -> None:
    """At 0.999 two documents that are 0.001 apart keep their places; no number agrees with nothing."""
    reference = [np.array([score, 1 - score], dtype=np.float32) for score in (0.5, 0.9)]
    off = [np.array([score, 1 - score], dtype=np.float32) for score in (0.5005, 0.9)]
    assert checks.score_agreement(reference, off) == pytest.approx((0.999, 0.9995), abs=1e-6)
    assert checks.score_agreement(reference, [np.full(2, np.nan, dtype=np.float32)] * 2)[0] == -1.0


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A model for FakeEngine."""
    loaded = fake_loaded_model(tmp_path / "model", max_position_embeddings=64)
    return Job(loaded.model, loaded.tokenizer, Head.MEAN)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engines opened, by name; all are fakes and all can be installed."""
    names: list[str] = []

    def opening(name: str) -> object:
        def open_fake(job: Job, plan: EnginePlan, device: str) -> Engine:
            names.append(name)
            return FakeEngine(job.head)

        return open_fake

    for name in choice.ENGINES:
        monkeypatch.setitem(choice.ENGINES, name, opening(name))
    monkeypatch.setattr(choice, "_open_reference", opening("reference"))
    monkeypatch.setattr(machine, "installed", lambda _name: "1.0")
    return names


def test_a_choice_is_measured_once_and_remembered(job: Job, opened: list[str], tmp_path: Path) -> None:
    """A second start opens one engine and measures nothing."""
    plan = replace(PLAN, models_dir=tmp_path / "models")
    lines: list[str] = []
    _, first = open_engine(job, plan, lines.append)
    assert "reference" in opened
    assert set(opened) > {"onnxruntime", "torch", "torch-bf16"}
    assert first.min_cosine == pytest.approx(1.0)
    opened.clear()
    _, second = open_engine(job, plan, lines.append)
    assert second == first
    assert opened == [first.engine]
    opened.clear()
    open_engine(job, plan, lines.append, anew=True)
    assert "reference" in opened


def test_another_wish_is_measured_anew(job: Job, opened: list[str], tmp_path: Path) -> None:
    """What was remembered for one wish does not answer another."""
    plan = replace(PLAN, models_dir=tmp_path / "models")
    open_engine(job, plan, lambda _line: None)
    opened.clear()
    _, pinned = open_engine(job, replace(plan, engine="torch"), lambda _line: None)
    assert pinned.engine == "torch"
    assert opened == ["reference", "torch", "torch"]


def test_a_damaged_memory_is_measured_again(job: Job, opened: list[str], tmp_path: Path) -> None:
    """A half-written verdict costs time, not the start."""
    plan = replace(PLAN, models_dir=tmp_path / "models")
    open_engine(job, plan, lambda _line: None)
    (file,) = (tmp_path / "models" / "engines").glob("*.json")
    file.write_text("{", encoding="utf-8")
    opened.clear()
    open_engine(job, plan, lambda _line: None)
    assert "reference" in opened


def test_a_remembered_engine_that_went_away_is_not_opened(
    job: Job, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict for an engine whose library and compiler are gone is measured anew, and obeyed while they are there."""
    plan = replace(PLAN, models_dir=tmp_path / "models")
    _, verdict = open_engine(job, plan, lambda _line: None)
    (file,) = (tmp_path / "models" / "engines").glob("*.json")
    file.write_text(json.dumps(asdict(replace(verdict, engine="amx-bf16"))), encoding="utf-8")
    monkeypatch.setattr(amx, "supports", lambda _model, _models_dir: True)
    opened.clear()
    open_engine(job, plan, lambda _line: None)
    assert opened == ["amx-bf16"]
    monkeypatch.setattr(amx, "supports", lambda _model, _models_dir: False)
    opened.clear()
    _, anew = open_engine(job, plan, lambda _line: None)
    assert "amx-bf16" not in opened
    assert anew.engine != "amx-bf16"


def test_a_remembered_engine_that_does_not_open_is_chosen_anew(
    job: Job, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ran when it was chosen may lack its compiler or its rights today: the worker starts with another."""
    plan = replace(PLAN, models_dir=tmp_path / "models")
    _, first = open_engine(job, plan, lambda _line: None)

    def fail(job: Job, plan: EnginePlan, device: str) -> Engine:
        raise OSError("file too short")

    monkeypatch.setitem(choice.ENGINES, first.engine, fail)
    lines: list[str] = []
    _, second = open_engine(job, plan, lines.append)
    assert second.engine != first.engine
    assert any("choosing anew" in line for line in lines)


def test_an_engine_that_fails_is_left_out(
    job: Job, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One engine that cannot run the model does not cost the others."""

    def fail(job: Job, plan: EnginePlan, device: str) -> Engine:
        raise RuntimeError("no kernel")

    monkeypatch.setitem(choice.ENGINES, "onnxruntime", fail)
    lines: list[str] = []
    _, found = open_engine(job, replace(PLAN, models_dir=tmp_path / "models"), lines.append)
    assert found.engine != "onnxruntime"
    assert any("onnxruntime cannot run here" in line for line in lines)


def test_an_unknown_engine_is_named_with_the_known_ones(job: Job, tmp_path: Path) -> None:
    """A misspelt engine fails at start and lists what there is."""
    with pytest.raises(ModelUnusable, match="onnxruntime") as caught:
        open_engine(job, replace(PLAN, models_dir=tmp_path, engine="onnx"), lambda _line: None)
    assert caught.value.reason == "ENGINE_UNKNOWN"


def test_an_unprepared_machine_without_torch_says_how_to_prepare(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring needs torch; the message says where to run it."""
    monkeypatch.setattr(machine, "installed", lambda _name: None)
    with pytest.raises(ModelUnusable, match=r"inference\.prepare") as caught:
        open_engine(job, replace(PLAN, models_dir=tmp_path), lambda _line: None)
    assert caught.value.reason == "ENGINE_NOT_PREPARED"


def test_a_machine_has_one_fingerprint() -> None:
    """The same machine is recognised again, and has at least one CPU."""
    assert machine.fingerprint() == machine.fingerprint()
    assert machine.cpus() >= 1
