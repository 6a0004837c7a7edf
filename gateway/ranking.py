"""From scores to a ranking, the same for every dialect that reranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gateway.bodies import require_at_most, require_not_empty
from gateway.catalogue import Capability, Catalogue
from gateway.exchange import Exchange
from gateway.peers import Reranker
from gateway.settings import GatewaySettings
from mesh.clients.reranking import RerankOptions, Scores
from mesh.errors import Internal, NotFound


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One document's place: its position in the request, and its score."""

    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents, best first; equal scores stay in the request's order."""

    results: tuple[RankedDocument, ...]
    scores: Scores


@dataclass(frozen=True, slots=True)
class Ranker:
    """Asks the reranker and sorts."""

    reranker: Reranker
    catalogue: Catalogue
    settings: GatewaySettings

    async def rank(
        self, exchange: Exchange, query: str, documents: list[str], options: RerankOptions, *, documents_param: str
    ) -> Ranking:
        """The documents by their score for ``query``.

        Raises:
            InvalidRequest: an empty query, no documents, or more than the limit.
            MeshError: what the reranker raises.
        """
        require_not_empty(query, "query")
        require_not_empty(documents, documents_param)
        require_at_most(len(documents), self.settings.limits.max_documents, documents_param)
        asked = options.model
        resolved = RerankOptions(
            model=self.catalogue.resolve(asked),
            max_tokens_per_document=options.max_tokens_per_document,
            truncation=options.truncation,
            raw_scores=options.raw_scores,
        )
        deadline = exchange.deadline(self.settings.timeouts.reranking_seconds)
        try:
            scores = await self.reranker.score(query, documents, resolved, deadline=deadline)
        except NotFound:
            raise await self.catalogue.unknown(asked, Capability.RERANK) from None
        exchange.note(model=scores.model, documents=len(documents), tokens=scores.usage.tokens)
        return Ranking(_sorted(scores, len(documents), is_raw=options.raw_scores), scores)


def _sorted(scores: Scores, documents: int, *, is_raw: bool) -> tuple[RankedDocument, ...]:
    if len(scores.scores) != documents or not all(map(math.isfinite, scores.scores)):
        raise Internal("The reranking worker answered with scores that are no scores.", hop="reranking")
    # float32 may round a sigmoid just past its end; clients check the bounds.
    values = scores.scores if is_raw else [min(1.0, max(0.0, score)) for score in scores.scores]
    order = sorted(range(documents), key=lambda index: -values[index])
    return tuple(RankedDocument(index, values[index]) for index in order)
