"""A query and documents to scores: checks the request, has it scored, scales the scores."""

from __future__ import annotations

import time
from dataclasses import dataclass

from inference.engines import FloatArray
from inference.loading import LoadedModel
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest
from reranking_service.scoring import RerankingRequest, Scorer

_CANARY = RerankingRequest(query="canary", documents=("a small yellow bird",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The answer.

    Attributes:
        scores: float32 (documents,), in the order of the documents; higher is better, in [0, 1] unless raw.
        tokens: what the model read, special tokens included.
        characters: of query and documents before truncation.
        truncated: positions of the documents that were cut.
    """

    scores: FloatArray
    tokens: int
    characters: int
    truncated: tuple[int, ...]
    total_seconds: float
    tokenization_seconds: float
    queue_seconds: float
    inference_seconds: float
    batch_size: int


class Reranker:
    """Serves one scorer. ``start`` on the event loop before the first ``rerank``.

    Args:
        scorer: what scores.
        profile: where a language model's prompt is written; empty for other models.
        instruction: the instruction in that prompt, or empty.
    """

    def __init__(self, scorer: Scorer, *, profile: str = "", instruction: str = "") -> None:
        self.scorer = scorer
        self.profile = profile
        self.instruction = instruction

    @property
    def loaded(self) -> LoadedModel:
        """The model behind the scorer."""
        return self.scorer.loaded

    def start(self) -> None:
        """Start the engine's thread. Call on the event loop that will rerank."""
        self.scorer.runner.start()

    async def prove(self, *, deadline: Deadline) -> None:
        """One real inference, before whatever waits for the engine."""
        await self.scorer.score(_CANARY, deadline=deadline, priority=Priority.INTERACTIVE, canary=True)

    def progress(self) -> float:
        """Seconds for which admitted work has waited without progress; 0.0 when idle."""
        return self.scorer.runner.progress()

    def occupied(self) -> bool:
        """Whether the engine computes a batch now that is no canary."""
        return self.scorer.runner.occupied()

    def failures(self) -> int:
        """How many batches the engine failed since it last computed one; 0 when all is well."""
        return self.scorer.runner.failures()

    async def stop(self) -> None:
        """Finish what was admitted and end the engine's thread."""
        await self.scorer.runner.stop()

    async def rerank(
        self, request: RerankingRequest, *, deadline: Deadline, priority: Priority = Priority.INTERACTIVE
    ) -> Scores:
        """One score per document of ``request``, in their order.

        Raises:
            InvalidRequest: no query, no document, or an empty one.
            NotFound: another model is served.
            PayloadTooLarge: more documents than the limits allow.
            MeshError: see Scorer.score.
        """
        started = time.perf_counter()
        self._check(request)
        scored = await self.scorer.score(request, deadline=deadline, priority=priority)
        return Scores(
            scores=scored.raw if request.raw else self.scorer.scaled(scored.raw),
            tokens=scored.tokens,
            characters=request.characters,
            truncated=scored.truncated,
            total_seconds=time.perf_counter() - started,
            tokenization_seconds=scored.tokenization_seconds,
            queue_seconds=scored.timings.queue_seconds,
            inference_seconds=scored.timings.inference_seconds,
            batch_size=scored.timings.largest_batch,
        )

    def _check(self, request: RerankingRequest) -> None:
        self.scorer.runner.require_served(request.model)
        if not request.query.strip():
            raise _empty("The query is empty. Send some text.", "query")
        if not request.documents:
            raise _empty("There are no documents. Send at least one.", "documents")
        self.scorer.runner.require_items(len(request.documents), param="documents")
        for position, document in enumerate(request.documents):
            if not document.strip():
                where = f"documents[{position}]"
                raise _empty(f"{where} is empty. Leave it out, or send some text.", where)
        if request.max_tokens_per_document == 0:
            raise InvalidRequest(
                "max_tokens_per_document must be at least 1; leave it out to read all that the model reads.",
                param="max_tokens_per_document",
            )


def _empty(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, reason="EMPTY_INPUT", param=param)
