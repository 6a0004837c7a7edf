"""Scoring by a model that reads query and document together and returns one logit: a cross-encoder or a language model.

What the pair looks like is the tokenizer's matter: a language model's lays it into the prompt of its profile.

Cross-encoders with one label only. With two or more, which of them means "relevant" is written nowhere, and a guess
would rank in the wrong order without a sign; they are refused when the model is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from inference.engines import FloatArray
from inference.loading import LoadedModel
from inference.padding import pad
from inference.rerankers import Method
from inference.runner import ModelRunner, RunnerLimits, short_name
from inference.tokenizing import TokenizedInput
from mesh.context import Priority
from mesh.deadline import Deadline
from reranking_service.scoring import RerankingRequest, Scored


class CrossEncoderScorer:
    """One forward pass per pair. See Scorer."""

    def __init__(
        self,
        loaded: LoadedModel,
        limits: RunnerLimits,
        *,
        aliases: Sequence[str] = (),
        method: Method = Method.CROSS_ENCODER,
    ) -> None:
        self.loaded = loaded
        self.method = method
        self.runner: ModelRunner[TokenizedInput, np.float32] = ModelRunner(
            loaded, self._compute, limits, capability="reranking", aliases=(short_name(loaded.model.name), *aliases)
        )

    async def score(
        self, request: RerankingRequest, *, deadline: Deadline, priority: Priority, canary: bool = False
    ) -> Scored:
        """See Scorer."""
        started = time.perf_counter()
        pairs = await self.runner.tokenize(
            request.size,
            lambda: self.loaded.tokenizer.pairs(
                request.query,
                request.documents,
                request.truncation,
                max_document_tokens=request.max_tokens_per_document,
            ),
            deadline=deadline,
            priority=priority,
            canary=canary,
        )
        tokenization_seconds = time.perf_counter() - started
        self.runner.require_tokens(pairs.tokens, param="documents")
        scored = await self.runner.submit(pairs.inputs, deadline=deadline, priority=priority, canary=canary)
        return Scored(
            raw=np.array(scored.results, dtype=np.float32),
            tokens=pairs.tokens,
            truncated=pairs.truncated,
            tokenization_seconds=tokenization_seconds,
            timings=scored.timings,
        )

    def scaled(self, raw: FloatArray) -> FloatArray:
        """The logistic function, in the form that overflows on neither side."""
        probabilities: FloatArray = np.float32(0.5) * (np.float32(1) + np.tanh(raw / np.float32(2)))
        return probabilities

    def _compute(self, inputs: Sequence[TokenizedInput]) -> Sequence[np.float32]:
        """On the engine's thread: one logit per pair."""
        batch = pad(inputs, pad_token_id=self.loaded.model.card.pad_token_id)
        return list(self.loaded.engine.run(batch)[:, 0])
