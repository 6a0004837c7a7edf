"""Scoring by late interaction: each token of the query finds its closest token of the document.

The score is MaxSim (Khattab and Zaharia, "ColBERT", 2020) divided by the query's length: token states scaled to length
1; for each token of the query the largest cosine to any token of the document; the mean of those. It asks nothing of
the encoder but its token states, so that the embedding model at hand can rerank.

Special tokens are left out on both sides. They carry no word, the closing one of a query always finds that of the
document, and so they would only squeeze the scores together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from inference.admission import BatchTimings
from inference.engines import FloatArray
from inference.loading import LoadedModel
from inference.padding import PaddedBatch, pad
from inference.pooling import normalized
from inference.rerankers import Method
from inference.runner import ModelRunner, RunnerLimits
from inference.tokenizing import Tokenized, TokenizedInput, Truncation
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest
from reranking_service.scoring import RerankingRequest, Scored

_LOWEST = np.float32(-1.0)
"""The cosine of opposites: the score of a document in which the tokenizer finds no token."""


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """A query to encode (``query`` is None), or a document to hold against an encoded query."""

    input: TokenizedInput
    query: FloatArray | None = None

    @property
    def tokens(self) -> int:
        return self.input.tokens


@dataclass(frozen=True, slots=True)
class _Texts:
    """A request as the model reads it."""

    query: Tokenized
    documents: Tokenized

    @property
    def tokens(self) -> int:
        return self.query.tokens + self.documents.tokens

    @property
    def truncated(self) -> tuple[int, ...]:
        return (*self.query.truncated, *self.documents.truncated)


class LateInteractionScorer:
    """MaxSim over the token states of one encoder. See Scorer.

    A query that is longer than the model reads keeps its beginning.
    """

    method = Method.LATE_INTERACTION

    def __init__(self, loaded: LoadedModel, limits: RunnerLimits, *, aliases: Sequence[str] = ()) -> None:
        self.loaded = loaded
        self.runner: ModelRunner[_Work, FloatArray] = ModelRunner(
            loaded, self._compute, limits, capability="reranking", aliases=aliases
        )

    async def score(
        self, request: RerankingRequest, *, deadline: Deadline, priority: Priority, canary: bool = False
    ) -> Scored:
        """See Scorer. The query is encoded once, whatever the number of documents."""
        started = time.perf_counter()
        texts = await self.runner.tokenize(
            request.size,
            lambda: self._tokenized(request),
            deadline=deadline,
            priority=priority,
            canary=canary,
        )
        query, documents = texts.query, texts.documents
        tokenization_seconds = time.perf_counter() - started
        self.runner.require_tokens(texts.tokens, param="documents")
        # Room for both parts at once: a request whose query is computed is not refused any more.
        room = self.runner.reserved(texts.tokens, deadline=deadline, priority=priority)
        with nullcontext() if canary else room as held:
            submit = partial(self.runner.submit, deadline=deadline, priority=priority, canary=canary, reservation=held)
            encoded = await submit([_Work(query.inputs[0])])
            (vectors,) = encoded.results
            scored = await submit([_Work(each, vectors) for each in documents.inputs])
        return Scored(
            raw=np.array(scored.results, dtype=np.float32),
            tokens=texts.tokens,
            truncated=documents.truncated,
            tokenization_seconds=tokenization_seconds,
            timings=_together(encoded.timings, scored.timings),
        )

    def scaled(self, raw: FloatArray) -> FloatArray:
        """A cosine's [-1, 1] onto [0, 1]."""
        halves: FloatArray = np.clip((raw + np.float32(1)) / np.float32(2), 0, 1)
        return halves

    def _tokenized(self, request: RerankingRequest) -> _Texts:
        tokenizer = self.loaded.tokenizer
        query = tokenizer.singles([request.query], Truncation.END)
        if query.truncated and request.truncation is Truncation.REFUSE:
            raise InvalidRequest(
                f"The query has more than the {tokenizer.max_tokens} tokens that are read. "
                "Shorten it, or allow truncation.",
                reason="INPUT_TOO_LONG",
                param="query",
            )
        if query.tokens == sum(tokenizer.specials):
            raise InvalidRequest(
                "The query holds nothing that the model has a token for. Ask in words.",
                reason="EMPTY_INPUT",
                param="query",
            )
        limit = request.max_tokens_per_document
        documents = tokenizer.singles(
            request.documents,
            request.truncation,
            param="documents",
            max_tokens=None if limit is None else limit + sum(tokenizer.specials),
        )
        return _Texts(query, documents)

    def _compute(self, works: Sequence[_Work]) -> Sequence[FloatArray]:
        """On the engine's thread: a query's token vectors, or a document's score. Queries of many callers may mix."""
        batch = pad([work.input for work in works], pad_token_id=self.loaded.model.card.pad_token_id)
        states = self.loaded.engine.run(batch)
        content = self._content(batch)
        results: dict[int, FloatArray] = {}
        sharing: dict[int, tuple[FloatArray, list[int]]] = {}
        for row, work in enumerate(works):
            if work.query is None:
                results[row] = normalized(states[row, content[row]])
            else:
                sharing.setdefault(id(work.query), (work.query, []))[1].append(row)
        for query, rows in sharing.values():
            results.update(zip(rows, max_similarities(query, states[rows], content[rows]), strict=True))
        return [results[row] for row in range(len(works))]

    def _content(self, batch: PaddedBatch) -> NDArray[np.bool_]:
        """(n, length): True where a token is that is not a special one."""
        before, after = self.loaded.tokenizer.specials
        positions = np.arange(batch.ids.shape[1])
        found: NDArray[np.bool_] = (positions >= before) & (positions < (batch.lengths - after)[:, None])
        return found


def max_similarities(query: FloatArray, states: FloatArray, content: NDArray[np.bool_]) -> FloatArray:
    """The mean over the query's tokens of the largest cosine to a token of each document.

    Args:
        query: (tokens, dimensions), rows of length 1.
        states: (documents, length, dimensions), of any length.
        content: (documents, length), which of them count.

    Returns:
        float32 (documents,), in [-1, 1]; -1 for a document without tokens.
    """
    documents, length, dimensions = states.shape
    # All products in one, then divided by the states' lengths: no scaled copy of all states.
    products = (states.reshape(-1, dimensions) @ query.T).reshape(documents, length, len(query))
    lengths = np.sqrt(np.einsum("nld,nld->nl", states, states))
    cosines = products / np.maximum(lengths, np.float32(1e-12))[:, :, None]
    closest = np.where(content[:, :, None], cosines, _LOWEST).max(axis=1)
    means: FloatArray = closest.mean(axis=1, dtype=np.float32)
    return means


def _together(first: BatchTimings, second: BatchTimings) -> BatchTimings:
    return BatchTimings(
        queue_seconds=first.queue_seconds + second.queue_seconds,
        inference_seconds=first.inference_seconds + second.inference_seconds,
        largest_batch=max(first.largest_batch, second.largest_batch),
    )
