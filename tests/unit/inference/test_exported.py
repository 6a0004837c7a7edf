"""Exports beside the original: found by their weights' hash, refused where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from inference import machine
from inference.engines import Engine, Head, choice
from inference.engines.choice import EnginePlan, Job, open_engine
from inference.exported import FLOAT32, INT8, MANIFEST, Export, ExportedGraph, find, folder_name, sha256_of
from inference.models import ResolvedModel
from inference.testing import FakeEngine, fake_loaded_model


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A model for FakeEngine; its weights' hash is made of zeros."""
    loaded = fake_loaded_model(tmp_path / "model", max_position_embeddings=64)
    return Job(loaded.model, loaded.tokenizer, Head.MEAN)


def write_export(folder: Path, model: ResolvedModel, *precisions: str, kind: str = "encoder") -> Export:
    """An export whose graphs are not ones."""
    folder = folder / folder_name(model.name)
    folder.mkdir(parents=True, exist_ok=True)
    graphs = {}
    for precision in precisions:
        file = folder / f"{precision}.onnx"
        file.write_bytes(f"the graph of {model.name} in {precision}".encode())
        graphs[precision] = ExportedGraph(
            file=file.name, sha256=sha256_of(file), size_bytes=file.stat().st_size,
            worst=0.99, mean=0.999, texts_per_second=100.0, left_alone=2,
        )  # fmt: skip
    export = Export(model=model.name, weights_sha256=model.sha256, kind=kind, graphs=graphs, folder=folder)
    export.write()
    return export


def test_an_export_of_these_weights_is_found(job: Job, tmp_path: Path) -> None:
    """As it was written, and whatever else lies there; nothing is said."""
    written = write_export(tmp_path / "onnx", job.model, FLOAT32, INT8)
    write_export(tmp_path / "onnx", replace(job.model, name="owner/another", sha256="1" * 64), FLOAT32)
    told: list[str] = []
    found = find(tmp_path / "onnx", job.model, Head.TOKENS, told.append)
    assert found == written
    assert told == []
    assert written.graph(FLOAT32) == tmp_path / "onnx" / "owner--fake" / "float32.onnx"


@pytest.mark.parametrize("folder", [None, Path("absent")])
def test_without_exports_nothing_is_found(job: Job, folder: Path | None) -> None:
    """Nor said."""
    assert find(folder, job.model, Head.MEAN, pytest.fail) is None


def test_a_classifiers_export_serves_no_encoder(job: Job, tmp_path: Path) -> None:
    """The same weights may be exported with another head."""
    write_export(tmp_path, job.model, FLOAT32, kind="classifier")
    assert find(tmp_path, job.model, Head.MEAN, pytest.fail) is None
    assert find(tmp_path, job.model, Head.LOGITS, pytest.fail) is not None


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        ("weights", "other weights"),
        ("graph", "not the file"),
        ("missing", "not the file"),
        ("manifest", "cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(job: Job, tmp_path: Path, harm: str, why: str) -> None:
    """Another model's hash, a changed or missing graph, an unreadable manifest: the folder is named."""
    other = replace(job.model, sha256="1" * 64) if harm == "weights" else job.model
    export = write_export(tmp_path, other, FLOAT32)
    graph = export.folder / "float32.onnx"
    if harm == "graph":
        graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    elif harm == "missing":
        graph.unlink()
    elif harm == "manifest":
        (export.folder / MANIFEST).write_text("[]")
    told: list[str] = []
    assert find(tmp_path, job.model, Head.MEAN, told.append) is None
    (line,) = told
    assert "owner--fake" in line
    assert why in line
    assert "The original is used" in line


def test_a_manifest_points_nowhere_else(job: Job, tmp_path: Path) -> None:
    """A graph outside of its folder is not read."""
    export = write_export(tmp_path, job.model, FLOAT32)
    outside = replace(export.graphs[FLOAT32], file=f"../{export.folder.name}/float32.onnx")
    replace(export, graphs={FLOAT32: outside}).write()
    told: list[str] = []
    assert find(tmp_path, job.model, Head.MEAN, told.append) is None
    assert len(told) == 1


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engines opened, by name, each with the export that it was given; all are fakes and all can be installed."""
    names: list[str] = []

    def opening(name: str) -> object:
        def open_fake(job: Job, plan: EnginePlan, device: str) -> Engine:
            names.append(f"{name} {'beside' if job.export else 'without'} an export")
            return FakeEngine(job.head)

        return open_fake

    for name in choice.ENGINES:
        monkeypatch.setitem(choice.ENGINES, name, opening(name))
    monkeypatch.setattr(choice, "_open_reference", opening("reference"))
    monkeypatch.setattr(machine, "installed", lambda _name: "1.0")
    return names


def test_an_export_is_a_candidate_as_soon_as_it_is_there(job: Job, opened: list[str], tmp_path: Path) -> None:
    """What was remembered without it is measured anew with it, and holds again once it is damaged."""
    plan = EnginePlan(models_dir=tmp_path / "models", device="cpu", onnx_dir=tmp_path / "onnx")
    open_engine(job, plan, lambda _line: None)
    assert not [name for name in opened if "int8" in name or "beside" in name]
    export = write_export(tmp_path / "onnx", job.model, FLOAT32, INT8)
    opened.clear()
    open_engine(job, plan, lambda _line: None)
    assert "onnxruntime-int8 beside an export" in opened
    opened.clear()
    open_engine(job, plan, lambda _line: None)
    assert len(opened) == 1
    (export.folder / "int8.onnx").write_bytes(b"damaged")
    opened.clear()
    told: list[str] = []
    open_engine(job, plan, told.append)
    assert len(opened) == 1
    assert "without" in opened[0]
    assert any("is refused" in line for line in told)


def test_int8_is_no_candidate_where_it_was_not_exported(job: Job, opened: list[str], tmp_path: Path) -> None:
    """A float32 export alone brings no further engine."""
    write_export(tmp_path / "onnx", job.model, FLOAT32)
    plan = EnginePlan(models_dir=tmp_path / "models", device="cpu", onnx_dir=tmp_path / "onnx")
    open_engine(job, plan, lambda _line: None)
    assert not [name for name in opened if "int8" in name]
