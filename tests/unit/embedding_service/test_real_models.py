"""Vectors of the default model, held against what sentence-transformers computes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from embedding_service.embedder import EmbeddingRequest
from embedding_service.settings import EmbeddingSettings
from embedding_service.worker import load_embedder
from inference import package
from inference.engines import FloatArray
from inference.prompts import InputType
from mesh.deadline import Deadline

pytest.importorskip("sentence_transformers", reason="needs the workers' environment")
pytestmark = [
    pytest.mark.workers_env,
    pytest.mark.skipif(package.model_directory() is None, reason="the package with the default model is not installed"),
    # Third parties' own: exporting by tracing is announced as legacy, and transformers' masks are traced.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Der Vertrag verlängert sich um ein Jahr.",
    "机器学习模型把文本变成向量。",
    "def add(a, b):\n    return a + b",
    "yes",
)


def mixed_texts(count: int = 60) -> list[str]:
    """Texts of one word to more than the model reads, in no order."""
    chooser = random.Random(5)
    words = " ".join(SENTENCES).split()
    lengths = [chooser.choice((1, 2, 5, 12, 30, 90, 400)) for _ in range(count)]
    return [*SENTENCES, *(" ".join(chooser.choices(words, k=length)) for length in lengths)]


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where graphs and verdicts are kept, shared by the tests of this file."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def reference() -> FloatArray:
    """float32 vectors of ``mixed_texts`` by sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(package.model_directory()), device="cpu")
    vectors: FloatArray = model.encode(mixed_texts(), normalize_embeddings=True)
    return vectors


@pytest.mark.parametrize(("engine", "least"), [("torch", 0.9999), ("auto", 0.99)])
async def test_vectors_as_sentence_transformers(
    reference: FloatArray, models_dir: Path, engine: str, least: float
) -> None:
    """Every text's vector is its own, in the order sent: cosine 0.9999 with torch, 0.99 with the default engine."""
    embedder = load_embedder(EmbeddingSettings.load({}, models_dir=models_dir, engine=engine, threads=1))
    embedder.start()
    try:
        request = EmbeddingRequest(texts=mixed_texts())
        found = await embedder.embed(request, deadline=Deadline.after(120))
    finally:
        await embedder.stop()
    cosines = (found.vectors * reference).sum(axis=1)
    assert cosines.min() >= least
    words = [len(text.split()) for text in mixed_texts()]
    assert set(found.truncated) >= {position for position, count in enumerate(words) if count == 400}


@pytest.mark.parametrize(
    ("input_type", "prompt"),
    [
        (InputType.QUERY, "Represent this sentence for searching relevant passages: "),
        (InputType.DOCUMENT, "passage: "),
        (InputType.UNSPECIFIED, ""),
    ],
)
async def test_prompts_as_sentence_transformers(models_dir: Path, input_type: InputType, prompt: str) -> None:
    """The prefix is really computed: cosine 0.9999 to encode(prompt=…), and far from the vector without it."""
    from sentence_transformers import SentenceTransformer

    texts = mixed_texts(20)
    model = SentenceTransformer(str(package.model_directory()), device="cpu")
    expected = model.encode(texts, prompt=prompt or None, normalize_embeddings=True)
    prompts = {"query": "Represent this sentence for searching relevant passages: ", "document": "passage: "}
    settings = EmbeddingSettings.load({}, models_dir=models_dir, engine="torch", threads=1, prompts=prompts)
    embedder = load_embedder(settings)
    embedder.start()
    found = await embedder.embed(EmbeddingRequest(texts=texts, input_type=input_type), deadline=Deadline.after(60))
    plain = await embedder.embed(EmbeddingRequest(texts=texts), deadline=Deadline.after(60))
    await embedder.stop()
    assert (found.vectors * expected).sum(axis=1).min() >= 0.9999
    assert ((found.vectors * plain.vectors).sum(axis=1).min() < 0.95) == bool(prompt)
