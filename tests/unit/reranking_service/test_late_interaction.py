"""MaxSim, held against its definition written out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import Replace

from inference.engines import FloatArray, Head
from inference.pooling import normalized
from inference.runner import RunnerLimits
from inference.testing import FakeEngine, GatedEngine, fake_loaded_model
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, Overloaded
from reranking_service.late_interaction import LateInteractionScorer, max_similarities
from reranking_service.scoring import RerankingRequest, Scored

LIMITS = RunnerLimits(items_per_request=100, tokens_per_request=1000, queued_tokens=2000, batch_tokens=24)
Start = Callable[[], Awaitable[LateInteractionScorer]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a scorer over one-hot token states."""
    async with AsyncExitStack() as stack:

        async def one() -> LateInteractionScorer:
            scorer = LateInteractionScorer(fake_loaded_model(tmp_path, head=Head.TOKENS), LIMITS)
            scorer.runner.start()
            stack.push_async_callback(scorer.runner.stop)
            return scorer

        yield one


async def score(scorer: LateInteractionScorer, query: str, *documents: str) -> Scored:
    """The scorer's raw answer."""
    request = RerankingRequest(query=query, documents=documents)
    return await scorer.score(request, deadline=Deadline.after(10), priority=Priority.INTERACTIVE)


def engine_of(scorer: LateInteractionScorer) -> FakeEngine:
    """The fake engine behind the scorer."""
    assert isinstance(scorer.loaded.engine, FakeEngine)
    return scorer.loaded.engine


def by_definition(query: FloatArray, document: FloatArray) -> float:
    """For each token of the query its best cosine in the document; their mean."""
    best = []
    for one in query.astype(np.float64):
        cosines = [one @ other / np.linalg.norm(one) / np.linalg.norm(other) for other in document.astype(np.float64)]
        best.append(max(cosines))
    return float(np.mean(best))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    query_tokens=st.integers(1, 5),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
)
def test_equals_the_definition(seed: int, query_tokens: int, lengths: list[int]) -> None:
    """Documents of any lengths, padded together, score as each does by itself."""
    chooser = np.random.default_rng(seed)
    query = chooser.normal(size=(query_tokens, 6)).astype(np.float32)
    states = chooser.normal(size=(len(lengths), max(lengths), 6)).astype(np.float32)
    content = np.arange(max(lengths)) < np.array(lengths)[:, None]
    found = max_similarities(normalized(query), states, content)
    expected = [by_definition(query, states[row, :length]) for row, length in enumerate(lengths)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_padding_may_hold_anything() -> None:
    """What an engine leaves in padded rows reaches no score."""
    query = np.array([[1, 0]], dtype=np.float32)
    states = np.array([[[0, 1], [np.nan, np.inf]]], dtype=np.float32)
    with np.errstate(invalid="ignore"):
        assert max_similarities(query, states, np.array([[True, False]])).tolist() == [0.0]


def test_a_document_without_tokens_scores_lowest() -> None:
    """Nothing to compare with is the worst match, not an error or a NaN."""
    states = np.ones((1, 2, 2), dtype=np.float32)
    found = max_similarities(np.ones((1, 2), dtype=np.float32), states, np.zeros((1, 2), dtype=bool))
    assert found.tolist() == [-1.0]


async def test_special_tokens_do_not_match_each_other(start: Start) -> None:
    """Without a common word the score is 0, although both texts are framed by the same special tokens."""
    scored = await score(await start(), "cat", "dog", "cat", "dog cat dog")
    assert scored.raw.tolist() == [0.0, 1.0, 1.0]


async def test_the_mean_over_the_query(start: Start) -> None:
    """Each word of the query counts the same, however long the document."""
    scored = await score(await start(), "cat dog", "cat", "cat dog", "dog cat dog cat on")
    assert scored.raw.tolist() == [0.5, 1.0, 1.0]


async def test_the_query_is_encoded_once(start: Start) -> None:
    """However many documents there are, the model reads the query once."""
    scorer = await start()
    await score(scorer, "cat sat on mat", *["dog"] * 20)
    batches = engine_of(scorer).batches
    rows = [tuple(ids[mask > 0]) for batch in batches for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    assert len(rows) == 21
    assert len(set(rows)) == 2


async def test_callers_share_batches_and_keep_their_scores(start: Start) -> None:
    """Documents of different queries in one batch are each held against their own query."""
    scorer = await start()
    words = ["a", "b", "c", "d", "cat", "dog"]
    answers = await asyncio.gather(*(score(scorer, word, *words) for word in words))
    for word, scored in zip(words, answers, strict=True):
        alone = await score(scorer, word, *words)
        assert scored.raw.tolist() == alone.raw.tolist()
        assert scored.raw[words.index(word)] == 1.0


async def test_a_query_of_nothing_is_refused(start: Start) -> None:
    """A query in which the tokenizer finds nothing cannot rank anything."""
    scorer = await start()
    scorer.loaded.tokenizer._tokenizer.normalizer = Replace("#", "")
    with pytest.raises(InvalidRequest) as refused:
        await score(scorer, "###", "cat")
    assert refused.value.param == "query"


def test_scaled_scores_keep_order_and_bounds(tmp_path: Path) -> None:
    """[-1, 1] becomes [0, 1], rounding errors included."""
    scorer = LateInteractionScorer(fake_loaded_model(tmp_path, head=Head.TOKENS), LIMITS)
    raw = np.array([-1.0000001, -0.5, 0.0, 0.5, 1.0000001], dtype=np.float32)
    assert scorer.scaled(raw).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


async def test_a_request_whose_query_is_computed_is_not_refused(tmp_path: Path) -> None:
    """Room is asked for once, for the query and the documents: whoever comes in between does not take it."""
    loaded, engine = GatedEngine.loaded(tmp_path, head=Head.TOKENS)
    scorer = LateInteractionScorer(loaded, replace(LIMITS, tokens_per_request=100, queued_tokens=100))
    scorer.runner.start()
    engine.gate.clear()
    first = asyncio.create_task(score(scorer, "cat", *["a b c d e"] * 8))
    async with asyncio.timeout(5):
        while not engine.batches:
            await asyncio.sleep(0.001)
    with pytest.raises(Overloaded):
        await score(scorer, "dog", *["a b c d e"] * 8)
    engine.gate.set()
    assert len((await first).raw) == 8
    await scorer.runner.stop()
