"""What the two methods of scoring have in common: a request, its scores, and the protocol between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from inference.admission import BatchTimings
from inference.engines import FloatArray
from inference.loading import LoadedModel
from inference.rerankers import Method
from inference.runner import ModelRunner, TextSize
from inference.tokenizing import Truncation
from mesh.context import Priority
from mesh.deadline import Deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankingRequest:
    """One caller's query and documents.

    Attributes:
        max_tokens_per_document: read at most this many tokens of each document; None reads what the model can.
        raw: the model's own scores, not scaled to [0, 1].
    """

    query: str
    documents: Sequence[str]
    model: str = ""
    max_tokens_per_document: int | None = None
    truncation: Truncation = Truncation.END
    raw: bool = False

    @property
    def characters(self) -> int:
        """Of query and documents together."""
        return len(self.query) + sum(map(len, self.documents))

    @property
    def size(self) -> TextSize:
        """How much text it is."""
        return TextSize(1 + len(self.documents), self.characters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a method found.

    Attributes:
        raw: float32 (documents,), in the order of the documents; higher is better.
        tokens: what the model read, special tokens included.
        truncated: positions of the documents that were cut.
        tokenization_seconds: until all ids were known.
    """

    raw: FloatArray
    tokens: int
    truncated: tuple[int, ...]
    tokenization_seconds: float
    timings: BatchTimings


class Scorer(Protocol):
    """One way to score documents against a query, over one loaded model."""

    @property
    def loaded(self) -> LoadedModel:
        """The model."""
        ...

    @property
    def runner(self) -> ModelRunner[Any, Any]:
        """What runs it."""
        ...

    @property
    def method(self) -> Method:
        """Which way this is."""
        ...

    async def score(
        self, request: RerankingRequest, *, deadline: Deadline, priority: Priority, canary: bool = False
    ) -> Scored:
        """One raw score per document. See Batcher.submit for the arguments.

        Raises:
            InvalidRequest: a document is too long with Truncation.REFUSE, or the query holds nothing to compare.
            PayloadTooLarge: more tokens than the limits allow.
            Overloaded, DeadlineExceeded, GpuOutOfMemory, Unavailable: see Batcher.submit.
        """
        ...

    def scaled(self, raw: FloatArray) -> FloatArray:
        """The raw scores in [0, 1], in the same order of merit."""
        ...
