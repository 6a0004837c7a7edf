"""Scores of real models, held against what sentence-transformers computes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference import package
from mesh.deadline import Deadline
from reranking_service.reranker import Reranker
from reranking_service.scoring import RerankingRequest
from reranking_service.settings import RerankingSettings
from reranking_service.worker import load_reranker

pytest.importorskip("sentence_transformers", reason="needs the workers' environment")
pytestmark = [
    pytest.mark.workers_env,
    # Third parties' own: exporting by tracing is announced as legacy, and transformers' masks are traced.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

QUERY = "How do I reset a forgotten password?"
DOCUMENTS = [
    "Bread is baked in an oven at two hundred degrees.",
    "To choose a new password, follow the link on the sign-in page; it is valid for one hour.",
    "password",
    "The parties agree that any dispute shall be settled by arbitration. " * 60,
    "Why did the dog run far away?",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "how", "do", "reset", "password", "the", "bread", "oven", "link"),
    *(f"##{letter}" for letter in LETTERS),
    *LETTERS,
    *".,;?-",
)


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where graphs and verdicts are kept, shared by the tests of this file."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with one label and random weights, saved as its authors would."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    path = tmp_path_factory.mktemp("cross-encoder")
    (path / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    BertTokenizerFast(str(path / "vocab.txt"), model_max_length=64).save_pretrained(path)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=1,
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # a random model's scores are all alike; these differ
    model.save_pretrained(path)
    return path


@pytest.fixture
def quiet_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


async def scores(
    settings: RerankingSettings, *, documents: Sequence[str] = DOCUMENTS, **options: Any
) -> tuple[list[float], tuple[int, ...], Reranker]:
    """What the worker answers for ``documents`` under ``settings``, and which of them it cut."""
    reranker = load_reranker(settings)
    reranker.start()
    try:
        request = RerankingRequest(query=QUERY, documents=documents, **options)
        found = await reranker.rerank(request, deadline=Deadline.after(120))
    finally:
        await reranker.stop()
    return found.scores.tolist(), found.truncated, reranker


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
async def test_a_cross_encoder_as_sentence_transformers(
    cross_encoder: Path, models_dir: Path, quiet_hub: None, engine: str
) -> None:
    """Logits and sigmoids agree to 1e-4, the over-long document cut at the same token."""
    import torch
    from sentence_transformers import CrossEncoder

    settings = RerankingSettings.load({}, model=str(cross_encoder), models_dir=models_dir, engine=engine, threads=1)
    raw, truncated, reranker = await scores(settings, raw=True)
    scaled, _, _ = await scores(settings)
    theirs = CrossEncoder(str(cross_encoder), device="cpu")
    pairs = [(QUERY, document) for document in DOCUMENTS]
    logits = theirs.predict(pairs, activation_fn=torch.nn.Identity())
    assert np.ptp(logits) > 0.1
    np.testing.assert_allclose(raw, logits, atol=1e-4)
    np.testing.assert_allclose(scaled, 1 / (1 + np.exp(-logits)), atol=1e-4)
    assert 3 in truncated
    assert reranker.loaded.engine.traits.name == engine


@pytest.mark.skipif(package.model_directory() is None, reason="the package with the default model is not installed")
async def test_late_interaction_as_token_embeddings(models_dir: Path, quiet_hub: None) -> None:
    """The default's scores are MaxSim over sentence-transformers' token embeddings, to 1e-3 in raw cosine."""
    from sentence_transformers import SentenceTransformer

    settings = RerankingSettings.load({}, models_dir=models_dir, engine="torch", threads=1)
    raw, truncated, reranker = await scores(settings, raw=True)
    theirs = SentenceTransformer(str(package.model_directory()), device="cpu")
    states = theirs.encode([QUERY, *DOCUMENTS], output_value="token_embeddings")
    query, *documents = ([state / np.linalg.norm(state) for state in each.numpy()[1:-1]] for each in states)
    expected = [np.mean([max(one @ other for other in document) for one in query]) for document in documents]
    np.testing.assert_allclose(raw, expected, atol=1e-3)
    assert int(np.argmax(raw)) == 1
    assert truncated == (3,)
    assert reranker.loaded.model.name == "late-interaction/all-MiniLM-L6-v2"


def many_documents(count: int = 60) -> list[str]:
    """Texts of one to eighty words, in no order."""
    chooser = random.Random(11)
    words = " ".join(DOCUMENTS).split()
    return [" ".join(chooser.choices(words, k=chooser.randint(1, 80))) for _ in range(count)]


def assert_same_order(found: Sequence[float], reference: Sequence[float], *, tie: float = 1e-3) -> None:
    """What the reference tells apart by more than a tie is in the reference's order."""
    found_at, reference_at = np.asarray(found, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    better = reference_at[:, None] - reference_at[None, :] > tie
    assert better.sum() > 100, "the reference ties nearly everything, and proves nothing"
    swapped = better & (found_at[:, None] <= found_at[None, :])
    assert not swapped.any(), f"{swapped.sum()} pairs of {better.sum()} are in another order"


@pytest.mark.parametrize("engine", ["auto", "onnxruntime", "torch"])
async def test_cross_encoders_rank_as_sentence_transformers(
    cross_encoder: Path, models_dir: Path, quiet_hub: None, engine: str
) -> None:
    """Sixty documents, whatever engine was chosen: scores in [0, 1], in the reference's order but for ties in 1e-3."""
    from sentence_transformers import CrossEncoder

    settings = RerankingSettings.load({}, model=str(cross_encoder), models_dir=models_dir, engine=engine, threads=1)
    found, _, _ = await scores(settings, documents=many_documents())
    theirs = CrossEncoder(str(cross_encoder), device="cpu").predict([(QUERY, each) for each in many_documents()])
    assert all(0 <= score <= 1 for score in found)
    assert_same_order(found, theirs.tolist())


@pytest.mark.skipif(package.model_directory() is None, reason="the package with the default model is not installed")
async def test_late_interaction_ranks_as_maxsim_in_process(models_dir: Path, quiet_hub: None) -> None:
    """Sixty documents, in half precision: the order of MaxSim over sentence-transformers' token embeddings."""
    from sentence_transformers import SentenceTransformer

    settings = RerankingSettings.load({}, models_dir=models_dir, engine="torch-bf16", threads=1)
    found, _, _ = await scores(settings, documents=many_documents())
    theirs = SentenceTransformer(str(package.model_directory()), device="cpu")
    states = theirs.encode([QUERY, *many_documents()], output_value="token_embeddings")
    query, *documents = ([state / np.linalg.norm(state) for state in each.numpy()[1:-1]] for each in states)
    maxsim = [np.mean([max(one @ other for other in document) for one in query]) for document in documents]
    assert all(0 <= score <= 1 for score in found)
    assert_same_order(found, [(score + 1) / 2 for score in maxsim])
