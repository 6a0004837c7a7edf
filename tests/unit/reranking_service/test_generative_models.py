"""A language model as a reranker, held against the way its makers publish, computed by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.profiles import RerankingProfile, family_of
from inference.rerankers import Method
from mesh.deadline import Deadline
from mesh.errors import ModelUnusable
from reranking_service.reranker import Reranker
from reranking_service.scoring import RerankingRequest
from reranking_service.settings import RerankingSettings
from reranking_service.worker import load_reranker

pytest.importorskip("transformers", reason="needs the workers' environment")
pytestmark = [
    pytest.mark.workers_env,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def published_profile() -> RerankingProfile:
    """What the project ships for Qwen3-Reranker."""
    family = family_of("Qwen/Qwen3-Reranker-0.6B")
    assert family is not None
    assert family.reranking is not None
    return family.reranking


TRAINED_STEPS = 60
POSITIONS = 384
QUERY = "Explain gravity"
DOCUMENTS = [
    "The capital of China is Beijing.",
    published_profile().golden[1].relevant,
    "no",
    "gravity attracts physical objects and planets around the sun " * 40,
    "yes",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``trained`` and ``random``, each a small Qwen3-Reranker by name."""
    from inference.testing_generative import write_language_model

    path = tmp_path_factory.mktemp("generative")
    for name, steps in (("trained", TRAINED_STEPS), ("random", 0)):
        write_language_model(path / name / "Qwen3-Reranker-tiny", published_profile(), steps=steps, positions=POSITIONS)
    return path


def settings(models: Path, which: str = "trained", **options: Any) -> RerankingSettings:
    """The worker's settings for one of the models."""
    options = {"models_dir": models, "engine": "torch", "threads": 1, **options}
    return RerankingSettings.load({}, model=str(models / which / "Qwen3-Reranker-tiny"), **options)


async def answer(reranker: Reranker, documents: list[str], **options: Any) -> tuple[list[float], tuple[int, ...]]:
    """Scores for QUERY, and which documents were cut."""
    request = RerankingRequest(query=QUERY, documents=documents, **options)
    found = await reranker.rerank(request, deadline=Deadline.after(60))
    return found.scores.tolist(), found.truncated


def published_way(path: Path, documents: list[str]) -> list[float]:
    """P(yes) against P(no), as the model card of Qwen3-Reranker computes it: left padding, one batch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(path, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    prefix, body, suffix = published_profile().template
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (prefix, suffix))
    texts = [
        body.format(instruction=published_profile().instruction, query=QUERY, document=document)
        for document in documents
    ]
    longest = POSITIONS - len(before) - len(after)
    ids = tokenizer(texts, truncation=True, max_length=longest, add_special_tokens=False)["input_ids"]
    batch = tokenizer.pad({"input_ids": [before + each + after for each in ids]}, return_tensors="pt")
    with torch.no_grad():
        last = model(**batch).logits[:, -1]
    answers = [tokenizer.convert_tokens_to_ids(text) for text in ("no", "yes")]
    found: list[float] = torch.softmax(last[:, answers], dim=1)[:, 1].tolist()
    return found


async def test_scores_as_published(models: Path) -> None:
    """Same prompt, same cut, same logits: scores agree to 1e-4, in [0, 1], and so does the order."""
    reranker = load_reranker(settings(models))
    reranker.start()
    found, truncated = await answer(reranker, DOCUMENTS)
    await reranker.stop()
    expected = published_way(models / "trained" / "Qwen3-Reranker-tiny", DOCUMENTS)
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert truncated == (3,)
    assert (reranker.scorer.method, reranker.profile) == (Method.GENERATIVE, "family qwen3-reranker")


async def test_half_precision_is_chosen_by_fidelity(models: Path) -> None:
    """A language model goes through the same measurement as every other, among the engines that can run it."""
    reranker = load_reranker(settings(models, engine="auto", min_cosine=0.8))
    assert reranker.loaded.verdict.engine in {"torch", "torch-bf16"}
    reranker.start()
    found, _ = await answer(reranker, DOCUMENTS[:2])
    await reranker.stop()
    assert found[1] > found[0]


async def test_a_documents_score_is_its_own(models: Path) -> None:
    """Padding on the left and neighbours of any length in the batch change nothing beyond rounding."""
    reranker = load_reranker(settings(models))
    reranker.start()
    together, _ = await answer(reranker, DOCUMENTS, raw=True)
    alone = [(await answer(reranker, [document], raw=True))[0][0] for document in DOCUMENTS]
    await reranker.stop()
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_model_that_knows_nothing_is_not_served(models: Path) -> None:
    """Random weights of the right shape fail the golden check, with what they answered and what to do."""
    with pytest.raises(ModelUnusable) as refused:
        load_reranker(settings(models, "random"))
    assert refused.value.reason == "MODEL_FAILS_GOLDEN_CHECK"
    assert "What is the capital of China?" in refused.value.message
    assert "family qwen3-reranker" in refused.value.message


def test_a_known_score_that_is_not_met_is_nonsense_too(models: Path, tmp_path: Path) -> None:
    """The order may be right by chance; a profile can state scores as well."""
    import json

    profile = published_profile()
    pair = profile.golden[0]
    known = {"query": pair.query, "document": pair.relevant, "score": 0.2}
    file = tmp_path / "strict.json"
    file.write_text(json.dumps({"reranking": {**profile.model_dump(), "scores": [known]}}), encoding="utf-8")
    with pytest.raises(ModelUnusable) as refused:
        load_reranker(settings(models, model_profile=file))
    assert refused.value.reason == "MODEL_FAILS_GOLDEN_CHECK"
    assert "0.2 ± 0.05 is known" in refused.value.message


def test_another_instruction(models: Path) -> None:
    """What the model is told to look for is a setting, and Info tells it; the model is asked its questions with it."""
    with pytest.raises(ModelUnusable):
        load_reranker(settings(models, instruction="no " * 200))
    instruction = published_profile().instruction + "."
    assert load_reranker(settings(models, instruction=instruction)).instruction == instruction
