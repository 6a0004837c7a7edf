"""The rules of a request, and what an answer says beside its scores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inference.engines import Head
from inference.runner import RunnerLimits
from inference.testing import FakeEngine, fake_loaded_model
from inference.tokenizing import Truncation
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, NotFound, PayloadTooLarge
from reranking_service.late_interaction import LateInteractionScorer
from reranking_service.reranker import Reranker, Scores
from reranking_service.scoring import RerankingRequest

LIMITS = RunnerLimits(items_per_request=4, tokens_per_request=40, queued_tokens=100)


@pytest.fixture
async def reranker(tmp_path: Path) -> AsyncIterator[Reranker]:
    """A reranker by late interaction over one-hot token states; the model reads 16 tokens."""
    loaded = fake_loaded_model(tmp_path, head=Head.TOKENS, name="late-interaction/fake")
    made = Reranker(LateInteractionScorer(loaded, LIMITS, aliases=("rerank-test",)))
    made.start()
    yield made
    await made.stop()


async def rerank(reranker: Reranker, query: str, *documents: str, **options: Any) -> Scores:
    """The answer to one request."""
    request = RerankingRequest(query=query, documents=documents, **options)
    return await reranker.rerank(request, deadline=Deadline.after(10))


@pytest.mark.parametrize(
    ("query", "documents", "param"),
    [
        ("", ["cat"], "query"),
        ("  \n", ["cat"], "query"),
        ("cat", [], "documents"),
        ("cat", ["cat", ""], "documents[1]"),
        ("cat", ["cat", "dog", " \t"], "documents[2]"),
    ],
)
async def test_nothing_to_score_is_refused(reranker: Reranker, query: str, documents: list[str], param: str) -> None:
    """An empty query, list or document is named by its place."""
    with pytest.raises(InvalidRequest) as refused:
        await rerank(reranker, query, *documents)
    assert (refused.value.reason, refused.value.param) == ("EMPTY_INPUT", param)


async def test_limits(reranker: Reranker) -> None:
    """Too many documents, or too many tokens in few of them, are refused before any is computed."""
    with pytest.raises(PayloadTooLarge) as refused:
        await rerank(reranker, "cat", *["dog"] * 5)
    assert refused.value.reason == "TOO_MANY_INPUTS"
    with pytest.raises(PayloadTooLarge) as refused:
        await rerank(reranker, "cat", *["a " * 14] * 4)
    assert refused.value.reason == "TOO_MANY_TOKENS"


async def test_names(reranker: Reranker) -> None:
    """The model answers to its name, its alias and no name; another name is told what is served."""
    for name in ("", "late-interaction/fake", "rerank-test"):
        assert (await rerank(reranker, "cat", "cat", model=name)).scores.tolist() == [1.0]
    with pytest.raises(NotFound, match="late-interaction/fake, rerank-test"):
        await rerank(reranker, "cat", "cat", model="rerank-v3.5")


async def test_the_embedding_models_own_name_stays_free(reranker: Reranker) -> None:
    """An encoder served for embedding too is not found under the same name here: names are unique in a mesh."""
    with pytest.raises(NotFound):
        await rerank(reranker, "cat", "cat", model="fake")


async def test_raw_and_scaled(reranker: Reranker) -> None:
    """Scaled scores are what raw ones become, in the same order."""
    raw = await rerank(reranker, "cat dog", "cat", "on", "dog cat", raw=True)
    scaled = await rerank(reranker, "cat dog", "cat", "on", "dog cat")
    assert raw.scores.tolist() == [0.5, 0.0, 1.0]
    assert scaled.scores.tolist() == [0.75, 0.5, 1.0]


async def test_usage_and_timings(reranker: Reranker) -> None:
    """Tokens with special ones, the query's once; characters as sent; times that add up."""
    found = await rerank(reranker, "cat dog", "cat", "the cat sat")
    assert (found.tokens, found.characters) == (4 + 3 + 5, 7 + 3 + 11)
    parts = found.tokenization_seconds + found.queue_seconds + found.inference_seconds
    assert 0 < parts <= found.total_seconds
    assert found.batch_size == 2


async def test_long_documents_are_cut_and_named(reranker: Reranker) -> None:
    """What was cut is listed; from which side is the caller's choice."""
    long = "cat " + "a " * 20 + "dog"
    for truncation, scores in ((Truncation.END, [1.0, 0.0]), (Truncation.START, [0.0, 1.0])):
        found = [await rerank(reranker, word, "on", long, truncation=truncation, raw=True) for word in ("cat", "dog")]
        assert [each.scores[1] for each in found] == scores
        assert all(each.truncated == (1,) for each in found)


async def test_long_documents_are_refused_on_request(reranker: Reranker) -> None:
    """REFUSE names the document and the query that are too long."""
    with pytest.raises(InvalidRequest) as refused:
        await rerank(reranker, "cat", "on", "a " * 20, truncation=Truncation.REFUSE)
    assert (refused.value.reason, refused.value.param) == ("INPUT_TOO_LONG", "documents[1]")
    with pytest.raises(InvalidRequest) as refused:
        await rerank(reranker, "a " * 20, "on", truncation=Truncation.REFUSE)
    assert refused.value.param == "query"


async def test_a_tighter_limit_per_document(reranker: Reranker) -> None:
    """max_tokens_per_document counts the document's own tokens; 0 is refused, and more than the model reads is cut."""
    found = await rerank(reranker, "dog", "cat dog", "cat on dog", max_tokens_per_document=2, raw=True)
    assert (found.scores.tolist(), found.truncated) == ([1.0, 0.0], (1,))
    assert (await rerank(reranker, "dog", "cat dog", max_tokens_per_document=4096)).truncated == ()
    with pytest.raises(InvalidRequest) as refused:
        await rerank(reranker, "dog", "cat", max_tokens_per_document=0)
    assert refused.value.param == "max_tokens_per_document"


async def test_proof(reranker: Reranker) -> None:
    """The canary is one real inference: the engine reads a query and a document."""
    await reranker.prove(deadline=Deadline.after(10))
    assert isinstance(reranker.loaded.engine, FakeEngine)
    assert len(reranker.loaded.engine.batches) == 2
