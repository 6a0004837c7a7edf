"""``scripts/onnx_export.py`` on small random models of both kinds, and workers that use what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from inference.card import ModelKind
from inference.engines import Head
from inference.engines.choice import EnginePlan
from inference.export import main
from inference.loading import LoadedModel, load
from inference.models import ModelRequest
from inference.padding import pad
from inference.testing import write_model
from inference.tokenizing import Truncation

pytestmark = [
    pytest.mark.workers_env,
    # Third parties' own: exporting by tracing is announced as legacy, and transformers' masks are traced.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

CHECKOUT = Path(__file__).parents[3]
ARCHITECTURES = {ModelKind.EMBEDDING: "BertModel", ModelKind.CROSS_ENCODER: "BertForSequenceClassification"}
TEXTS = ["the cat sat on the mat", "dog", "far away the red dog ran"]


def small_model(path: Path, kind: ModelKind) -> Path:
    """A random BERT of two layers, saved as its authors would."""
    import torch
    import transformers

    write_model(path, architecture=ARCHITECTURES[kind])
    vocabulary = json.loads((path / "config.json").read_text("utf-8"))["vocab_size"]
    config = transformers.BertConfig(
        vocab_size=vocabulary, num_labels=1, pad_token_id=0, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=64, max_position_embeddings=40,
    )  # fmt: skip
    torch.manual_seed(7)
    model = getattr(transformers, ARCHITECTURES[kind])(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # a random model's outputs are all alike; these differ
    model.save_pretrained(path)
    return path


def loaded(path: Path, kind: ModelKind, tmp_path: Path, engine: str) -> tuple[LoadedModel, list[str]]:
    """The model as a worker loads it with one engine, and what it says."""
    told: list[str] = []
    plan = EnginePlan(
        models_dir=tmp_path / "models", engine=engine, device="cpu", threads=1, onnx_dir=tmp_path / "onnx"
    )
    head = Head.LOGITS if kind is ModelKind.CROSS_ENCODER else None
    return load(ModelRequest(name=str(path), kind=kind), plan, head=head, report=told.append), told


def output(model: LoadedModel) -> np.ndarray:
    """What a loaded model makes of TEXTS."""
    if model.head is Head.LOGITS:
        inputs = model.tokenizer.pairs("the cat", TEXTS, Truncation.END).inputs
    else:
        inputs = model.tokenizer.singles(TEXTS, Truncation.END).inputs
    return model.engine.run(pad(inputs, pad_token_id=model.model.card.pad_token_id))


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_a_worker_uses_the_export(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: ModelKind) -> None:
    """Both kinds, in float32 and int8, with their figures printed; the worker exports nothing of its own."""
    path = small_model(tmp_path / "small", kind)
    assert main(["--model", str(path), "--output", str(tmp_path / "onnx"), "--int8", "--min-cosine", "0.98"]) == 0
    table = capsys.readouterr().out
    assert ("largest diff" if kind is ModelKind.CROSS_ENCODER else "min cosine") in table
    assert {file.name for file in (tmp_path / "onnx" / "small").iterdir()} == {
        "export.json", "model.int8.onnx", "model.onnx"
    }  # fmt: skip
    stated = json.loads((tmp_path / "onnx" / "small" / "export.json").read_text())["graphs"]
    assert f"{stated['int8']['worst']:.5f}" in table
    reference = output(loaded(path, kind, tmp_path, "torch")[0])
    exact, told = loaded(path, kind, tmp_path, "onnxruntime")
    np.testing.assert_allclose(output(exact), reference, rtol=1e-3, atol=1e-4)
    coarse, _ = loaded(path, kind, tmp_path, "onnxruntime-int8")
    assert (coarse.engine.traits.name, coarse.engine.traits.precision) == ("onnxruntime-int8", "int8")
    assert coarse.verdict.min_cosine >= 0.98
    assert not np.array_equal(output(coarse), reference)
    assert not (tmp_path / "models" / "onnx").exists()
    assert not [line for line in told if "refused" in line]


def test_a_damaged_export_is_refused_and_the_original_used(tmp_path: Path) -> None:
    """With a message, and with the original's vectors."""
    path = small_model(tmp_path / "small", ModelKind.EMBEDDING)
    assert main(["--model", str(path), "--output", str(tmp_path / "onnx")]) == 0
    graph = tmp_path / "onnx" / "small" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-100])
    model, told = loaded(path, ModelKind.EMBEDDING, tmp_path, "onnxruntime")
    assert any("is refused" in line for line in told)
    np.testing.assert_allclose(
        output(model), output(loaded(path, ModelKind.EMBEDDING, tmp_path, "torch")[0]), rtol=1e-3, atol=1e-4
    )


def test_as_few_products_as_needed_stay_float32(tmp_path: Path) -> None:
    """An easy goal leaves none alone, an impossible one all: then the graph is exact."""
    path = small_model(tmp_path / "small", ModelKind.EMBEDDING)
    left_alone = {}
    for least in ("0", "1.1"):
        output = str(tmp_path / "onnx")
        assert main(["--model", str(path), "--output", output, "--int8", "--min-cosine", least]) == 0
        left_alone[least] = json.loads((tmp_path / "onnx" / "small" / "export.json").read_text())["graphs"]["int8"]
    assert left_alone["0"]["left_alone"] == 0
    assert left_alone["1.1"]["left_alone"] == 8
    assert left_alone["0"]["worst"] < left_alone["1.1"]["worst"] == pytest.approx(1.0, abs=1e-6)


def test_a_folder_that_is_no_export_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model's own, where it lies in the output; a second export of it does replace the first."""
    path = small_model(tmp_path / "small", ModelKind.EMBEDDING)
    assert main(["--model", str(path), "--output", str(tmp_path)]) == 1
    assert "EXPORT_IN_THE_WAY" in capsys.readouterr().err
    assert (path / "model.safetensors").is_file()
    for _ in range(2):
        assert main(["--model", str(path), "--output", str(tmp_path / "onnx")]) == 0


def test_a_model_that_cannot_be_used_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a worker would say it, and nothing is written."""
    assert main(["--model", str(tmp_path / "absent"), "--output", str(tmp_path / "onnx")]) == 1
    assert "MODEL_NOT_FOUND" in capsys.readouterr().err
    assert not (tmp_path / "onnx").exists()


def script(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The script, as a user calls it from elsewhere."""
    command = [sys.executable, str(CHECKOUT / "scripts" / "onnx_export.py"), *arguments]
    return subprocess.run(command, cwd="/", env={**os.environ, **variables}, capture_output=True, text=True)


def test_the_script_runs_in_the_workers_environment(tmp_path: Path) -> None:
    """Whatever Python calls it, and with relative paths from where the user stands; where there is none, it says so."""
    python = tmp_path / "workers" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" in "$PWD" with "$PYTHONPATH"\n')
    python.chmod(0o755)
    found = script("--model", "m", MESH_ENVS=str(tmp_path), PYTHONPATH="")
    assert found.stdout == f"-m inference.export --model m in / with {CHECKOUT}\n"
    missing = script("--model", "m", MESH_ENVS=str(tmp_path / "absent"))
    assert missing.returncode == 1
    assert "start_torch_isolation.sh" in missing.stderr
