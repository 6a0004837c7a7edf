"""Scoring pairs: what the model is given, and how its logits become scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from inference.engines import Head
from inference.runner import RunnerLimits
from inference.testing import FakeEngine, fake_loaded_model
from mesh.context import Priority
from mesh.deadline import Deadline
from reranking_service.cross_encoder import CrossEncoderScorer
from reranking_service.scoring import RerankingRequest

LIMITS = RunnerLimits(items_per_request=100, tokens_per_request=1000, queued_tokens=2000)


def make_scorer(path: Path) -> CrossEncoderScorer:
    """A scorer whose logit is the number of tokens of the pair; the model reads 16."""
    return CrossEncoderScorer(fake_loaded_model(path, head=Head.LOGITS), LIMITS)


async def test_logits_in_the_order_of_the_documents(tmp_path: Path) -> None:
    """Sorting by length inside a batch does not reach the caller."""
    scorer = make_scorer(tmp_path)
    scorer.runner.start()
    request = RerankingRequest(query="cat", documents=("a b c d", "a", "a b c"))
    scored = await scorer.score(request, deadline=Deadline.after(10), priority=Priority.INTERACTIVE)
    await scorer.runner.stop()
    assert scored.raw.tolist() == [8.0, 5.0, 7.0]
    assert scored.tokens == 20


async def test_the_document_has_its_own_type(tmp_path: Path) -> None:
    """Type ids tell the query (0) from the document (1), its closing token included."""
    scorer = make_scorer(tmp_path)
    scorer.runner.start()
    request = RerankingRequest(query="cat", documents=("a b",))
    await scorer.score(request, deadline=Deadline.after(10), priority=Priority.INTERACTIVE)
    await scorer.runner.stop()
    assert isinstance(scorer.loaded.engine, FakeEngine)
    (batch,) = scorer.loaded.engine.batches
    assert batch.type_ids is not None
    assert batch.type_ids.tolist() == [[0, 0, 0, 1, 1, 1]]


async def test_a_long_document_is_cut_and_the_query_kept(tmp_path: Path) -> None:
    """A query within its half of the room is read whole, and the cut document is reported."""
    scorer = make_scorer(tmp_path)
    scorer.runner.start()
    request = RerankingRequest(query="cat sat on mat", documents=("dog", "a " * 50))
    scored = await scorer.score(request, deadline=Deadline.after(10), priority=Priority.INTERACTIVE)
    await scorer.runner.stop()
    assert scored.truncated == (1,)
    assert isinstance(scorer.loaded.engine, FakeEngine)
    longest = max((row for batch in scorer.loaded.engine.batches for row in batch.ids), key=len)
    words = scorer.loaded.tokenizer.singles(["cat sat on mat"], request.truncation).inputs[0].ids
    assert len(longest) == 16
    assert longest[:6].tolist() == list(words)


def test_scaling_is_the_logistic_function(tmp_path: Path) -> None:
    """Scores are probabilities, without overflow for logits of any size."""
    raw = np.array([-1e4, -2.0, 0.0, 2.0, 1e4], dtype=np.float32)
    expected = [0.0, 1 / (1 + np.exp(2)), 0.5, 1 / (1 + np.exp(-2)), 1.0]
    np.testing.assert_allclose(make_scorer(tmp_path).scaled(raw), expected, atol=1e-6)
