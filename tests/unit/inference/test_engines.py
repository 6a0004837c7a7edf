"""The engines, on small random models of several architectures and on the default model itself."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference import machine, package
from inference.card import ModelKind
from inference.engines import Head, amx, checks
from inference.engines.choice import ENGINES, EnginePlan, Job, _open_reference, open_engine
from inference.loading import load
from inference.models import DEFAULT_EMBEDDING_MODEL, ModelRequest, resolve
from inference.padding import pad
from inference.pooling import normalized
from inference.testing import write_model
from inference.tokenizing import TextTokenizer, Truncation

pytestmark = [
    pytest.mark.workers_env,
    # Third parties' own: exporting by tracing is announced as legacy, and transformers' masks are traced.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

TEXTS = ["the cat sat on the mat", "dog", "far away the red dog ran", "one two three a b c d e f", "blue"]
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


def small_model(path: Path, architecture: str) -> Path:
    """A random model of ``architecture``, saved as its authors would."""
    import torch
    import transformers

    write_model(path, architecture=architecture)
    vocabulary = json.loads((path / "config.json").read_text("utf-8"))["vocab_size"]
    config_class = {"Bert": "BertConfig", "Roberta": "RobertaConfig"}[
        architecture.partition("F")[0].removesuffix("Model")
    ]
    config = getattr(transformers, config_class)(vocab_size=vocabulary, num_labels=1, pad_token_id=0, **SMALL)
    torch.manual_seed(7)
    model = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # a random model's outputs are all alike; these differ
    model.save_pretrained(path)
    return path


def job_for(path: Path, head: Head) -> Job:
    """The model in ``path`` for one head."""
    kind = ModelKind.CROSS_ENCODER if head is Head.LOGITS else ModelKind.EMBEDDING
    model = resolve(ModelRequest(name=str(path), kind=kind))
    return Job(model, TextTokenizer.load(path, name="small", max_tokens=model.card.max_input_tokens), head)


def outputs(engine: Any, job: Job) -> list[Any]:
    """What ``engine`` makes of TEXTS, in one padded batch."""
    if job.head is Head.LOGITS:
        tokenized = job.tokenizer.pairs("the cat", TEXTS, Truncation.END)
    else:
        tokenized = job.tokenizer.singles(TEXTS, Truncation.END)
    batch = pad(tokenized.inputs, pad_token_id=job.model.card.pad_token_id)
    return checks.comparable(engine.run(batch), batch, job.head)


@pytest.mark.parametrize("engine", ["onnxruntime", "torch", "torch-bf16"])
@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("BertModel", Head.MEAN),
        ("BertModel", Head.TOKENS),
        ("BertModel", Head.CLS),
        ("RobertaModel", Head.MEAN),
        ("BertForSequenceClassification", Head.LOGITS),
        ("RobertaForSequenceClassification", Head.LOGITS),
    ],
)
def test_every_engine_agrees_with_transformers(tmp_path: Path, architecture: str, head: Head, engine: str) -> None:
    """In float32 to the last digits, in bfloat16 closely, with padding in the batch."""
    job = job_for(small_model(tmp_path / "model", architecture), head)
    plan = EnginePlan(models_dir=tmp_path / "models", threads=1)
    expected = outputs(_open_reference(job, plan, "cpu"), job)
    found = outputs(ENGINES[engine](job, plan, "cpu"), job)
    low, _ = checks.agreement(expected, found)
    assert low >= (0.99 if engine == "torch-bf16" else 0.999999)


def test_padding_does_not_change_a_vector(tmp_path: Path) -> None:
    """A text's vector is the same alone and beside a longer one."""
    job = job_for(small_model(tmp_path / "model", "BertModel"), Head.MEAN)
    engine = ENGINES["torch"](job, EnginePlan(models_dir=tmp_path, threads=1), "cpu")
    inputs = job.tokenizer.singles(TEXTS, Truncation.END).inputs
    together = engine.run(pad(inputs))
    for row, each in enumerate(inputs):
        np.testing.assert_allclose(engine.run(pad([each]))[0], together[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", [Head.MEAN, Head.TOKENS])
def test_threads_share_a_batch_and_not_its_answers(tmp_path: Path, head: Head) -> None:
    """Three threads give what one gives, in the same order, for any number of inputs."""
    job = job_for(small_model(tmp_path / "model", "BertModel"), head)
    one, three = (ENGINES["torch"](job, EnginePlan(models_dir=tmp_path, threads=count), "cpu") for count in (1, 3))
    for count in range(1, len(TEXTS) + 1):
        batch = pad(job.tokenizer.singles(TEXTS[:count], Truncation.END).inputs)
        expected, found = (checks.comparable(engine.run(batch), batch, head) for engine in (one, three))
        for each, other in zip(expected, found, strict=True):
            np.testing.assert_allclose(other, each, rtol=1e-4, atol=1e-5)
        three.give_way(count % 2 == 0)
    three.close()


def test_the_exported_graph_has_fused_attention(tmp_path: Path) -> None:
    """The export is not merely right: its attention is one node a layer."""
    import onnx

    from inference.engines import onnx_export

    job = job_for(small_model(tmp_path / "model", "BertModel"), Head.MEAN)
    graph = onnx_export.graph_file(tmp_path / "models", job.model, Head.MEAN)
    onnx_export.export(job.model, Head.MEAN, graph)
    operators = [node.op_type for node in onnx.load(str(graph)).graph.node]
    assert operators.count("Attention") == SMALL["num_hidden_layers"]
    assert [file.name for file in graph.parent.iterdir()] == [graph.name]


def test_auto_measures_real_engines_and_serves_the_chosen(tmp_path: Path) -> None:
    """The whole path: reference, candidates, verdict, engine."""
    job = job_for(small_model(tmp_path / "model", "BertModel"), Head.MEAN)
    plan = EnginePlan(models_dir=tmp_path / "models", device="cpu", threads=1, min_cosine=0.99)
    engine, verdict = open_engine(job, plan, lambda _line: None)
    assert verdict.engine in ENGINES
    assert verdict.min_cosine >= 0.99
    assert verdict.texts_per_second > 0
    assert engine.traits.device == "cpu"


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    """An encoder whose file lacks a layer is not filled with random numbers."""
    from safetensors.torch import load_file, save_file

    from mesh.errors import ModelUnusable

    path = small_model(tmp_path / "model", "RobertaModel")
    tensors = load_file(path / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    job = job_for(path, Head.MEAN)
    with pytest.raises(ModelUnusable) as caught:
        _open_reference(job, EnginePlan(models_dir=tmp_path, threads=1), "cpu")
    assert caught.value.reason == "MODEL_DAMAGED"


# -- the default model ------------------------------------------------------------------------------------------------

needs_amx = pytest.mark.skipif(
    not (machine.cpu_flags() >= amx.CPU_FLAGS and amx.SOURCE.obtainable(Path("nowhere"))),
    reason="needs a CPU with AMX and a C compiler",
)
needs_default_model = pytest.mark.skipif(
    package.model_directory() is None, reason="the package with the default embedding model is not installed"
)
REAL_TEXTS = [*checks._SENTENCES, *checks._short_texts(40)]


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs of this module's tests."""
    return tmp_path_factory.mktemp("models")


@needs_default_model
@pytest.mark.parametrize(
    ("engine", "smallest"),
    [
        ("torch", 0.9999),
        ("torch-bf16", 0.999),
        ("onnxruntime", 0.9999),
        pytest.param("amx-bf16", 0.999, marks=needs_amx),
        pytest.param("amx-bf16x3", 0.999999, marks=needs_amx),
    ],
)
def test_the_default_model_agrees_with_sentence_transformers(models_dir: Path, engine: str, smallest: float) -> None:
    """Texts of many lengths and scripts in one batch: each vector is sentence-transformers' own, in order."""
    from sentence_transformers import SentenceTransformer

    path = package.model_directory()
    expected = SentenceTransformer(str(path), device="cpu").encode(REAL_TEXTS, normalize_embeddings=True)
    request = ModelRequest(name=DEFAULT_EMBEDDING_MODEL, kind=ModelKind.EMBEDDING)
    plan = EnginePlan(models_dir=models_dir, threads=1, device="cpu")
    model = resolve(request)
    tokenizer = TextTokenizer.load(model.path, name=model.name, max_tokens=model.card.max_input_tokens)
    job = Job(model, tokenizer, Head.MEAN)
    inputs = tokenizer.singles(REAL_TEXTS, Truncation.END).inputs
    found = normalized(ENGINES[engine](job, plan, "cpu").run(pad(inputs)))
    assert (expected * found).sum(axis=1).min() >= smallest


@needs_default_model
def test_onnxruntime_serves_without_torch(models_dir: Path) -> None:
    """Once a graph is exported and chosen, a start imports neither torch nor transformers."""
    plan = EnginePlan(models_dir=models_dir, engine="onnxruntime", device="cpu", threads=1)
    load(ModelRequest(name=DEFAULT_EMBEDDING_MODEL, kind=ModelKind.EMBEDDING), plan, report=lambda _line: None)
    program = f"""
import sys
from pathlib import Path
from inference.card import ModelKind
from inference.engines.choice import EnginePlan
from inference.loading import load
from inference.models import DEFAULT_EMBEDDING_MODEL, ModelRequest
plan = EnginePlan(models_dir=Path({str(models_dir)!r}), engine="onnxruntime", device="cpu", threads=1)
load(ModelRequest(name=DEFAULT_EMBEDDING_MODEL, kind=ModelKind.EMBEDDING), plan)
assert not {{"torch", "transformers", "sentence_transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])


@needs_amx
@needs_default_model
def test_amx_serves_without_torch(models_dir: Path) -> None:
    """Once chosen, a start with the C engine imports neither torch nor transformers, and its vectors are right."""
    plan = EnginePlan(models_dir=models_dir, engine="amx-bf16", device="cpu", threads=1)
    load(ModelRequest(name=DEFAULT_EMBEDDING_MODEL, kind=ModelKind.EMBEDDING), plan, report=lambda _line: None)
    program = f"""
import sys
from pathlib import Path
from inference.card import ModelKind
from inference.engines.choice import EnginePlan
from inference.loading import load
from inference.models import DEFAULT_EMBEDDING_MODEL, ModelRequest
plan = EnginePlan(models_dir=Path({str(models_dir)!r}), engine="amx-bf16", device="cpu", threads=1)
load(ModelRequest(name=DEFAULT_EMBEDDING_MODEL, kind=ModelKind.EMBEDDING), plan)
assert not {{"torch", "transformers", "sentence_transformers", "onnxruntime"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])


@needs_default_model
def test_the_projects_own_bert_needs_no_transformers(models_dir: Path) -> None:
    """The torch engine runs the default model without importing transformers."""
    plan = replace(EnginePlan(models_dir=models_dir, threads=1), engine="torch", device="cpu")
    load(ModelRequest(name=DEFAULT_EMBEDDING_MODEL, kind=ModelKind.EMBEDDING), plan, report=lambda _line: None)
    program = f"""
import sys
from pathlib import Path
from inference.card import ModelKind
from inference.engines.choice import EnginePlan
from inference.loading import load
from inference.models import DEFAULT_EMBEDDING_MODEL, ModelRequest
plan = EnginePlan(models_dir=Path({str(models_dir)!r}), engine="torch", device="cpu", threads=1)
load(ModelRequest(name=DEFAULT_EMBEDDING_MODEL, kind=ModelKind.EMBEDDING), plan)
assert "torch" in sys.modules
assert not {{"transformers", "sentence_transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])


def test_few_token_counts_are_computed_and_little_for_nothing() -> None:
    """Kernels and memory are kept for each count, so there are few of them, an eighth too large or seven at most."""
    from inference.engines.bert import rounded

    counts = {tokens: rounded(tokens) for tokens in range(1, 2049)}
    assert len(set(counts.values())) < 60
    assert all(tokens <= count <= max(tokens + 7, tokens * 9 / 8) for tokens, count in counts.items())
