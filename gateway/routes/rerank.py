"""Cohere's ``POST /v2/rerank``, and the ``POST /v1/rerank`` that Cohere's v1 API and Jina share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.answers import json_answer
from gateway.api import Api, Operation
from gateway.bodies import ModelName, Texts, VendorBody, read_json
from gateway.exchange import Exchange
from gateway.ranking import Ranker, Ranking
from gateway.routes.embeddings import timings_ms, truncated_header
from mesh.clients.embedding import Truncation
from mesh.clients.reranking import RerankOptions
from mesh.context import Priority, current_call
from mesh.errors import InvalidBody

_DOCUMENTS_PER_SEARCH_UNIT = 100
_QUERY = "What does a circuit breaker do?"
_DOCUMENTS = ["Bread is baked in an oven.", "It stops calls to a peer that fails."]
_MaxTokens = Annotated[int, Field(ge=1, le=2**31 - 1)]


class CohereRerankRequest(VendorBody):
    """Cohere's v2 request."""

    query: str = Field(description="a text")
    documents: Texts = Field(description="a list of texts")
    model: ModelName = Field("", description="a served model or an alias; left out, the default one")
    top_n: Annotated[int, Field(ge=1)] | None = Field(None, description="a whole number from 1; left out, all")
    max_tokens_per_doc: _MaxTokens | None = Field(4096, description="a whole number from 1")
    priority: Annotated[int, Field(ge=0, le=999)] | None = Field(None, description="0 (first) to 999; from 1 on, bulk")
    relevant_spans: Any = None


class SharedRerankRequest(VendorBody):
    """Jina's request and Cohere's v1 request at once: one path serves both."""

    query: str = Field(description="a text")
    documents: Annotated[list[str | dict[str, Any]], Field(fail_fast=True)] = Field(
        description="a list of texts, or of objects with a text"
    )
    model: ModelName = Field("", description="a served model or an alias; left out, the default one")
    top_n: Annotated[int, Field(ge=0)] | None = Field(None, description="a whole number; 0 or left out, all")
    return_documents: bool | None = Field(True, description="true or false")
    truncation: bool | None = Field(True, description="true cuts over-long documents, false refuses them")
    rank_fields: Texts | None = Field(None, description="names of the documents' fields to read, in this order")
    max_tokens_per_doc: _MaxTokens | None = Field(None, description="a whole number from 1")


COHERE = Operation(
    method="POST",
    path="/v2/rerank",
    tag="Cohere",
    summary="Rank documents",
    description="As Cohere's v2: best first, scores in [0, 1].",
    body=CohereRerankRequest,
    examples={"Two documents": {"query": _QUERY, "documents": _DOCUMENTS, "top_n": 1}},
    answer={
        "id": "6f1c0d1e9f6b4d6c8f5a0b3c2d1e0f9a",
        "results": [{"index": 1, "relevance_score": 0.87}],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}, "tokens": {"input_tokens": 24}},
    },
)
SHARED = Operation(
    method="POST",
    path="/v1/rerank",
    tag="Jina and Cohere v1",
    summary="Rank documents",
    description="As Jina's, which Cohere's v1 client reads too: best first, scores in [0, 1], with the texts.",
    body=SharedRerankRequest,
    examples={"Two documents": {"query": _QUERY, "documents": _DOCUMENTS, "top_n": 1, "return_documents": True}},
    answer={
        "id": "6f1c0d1e9f6b4d6c8f5a0b3c2d1e0f9a",
        "model": "all-MiniLM-L6-v2",
        "object": "list",
        "usage": {"total_tokens": 24, "prompt_tokens": 24},
        "results": [{"index": 1, "relevance_score": 0.87, "document": {"text": _DOCUMENTS[1]}}],
    },
)


@dataclass(frozen=True, slots=True)
class RerankRoutes:
    """Answers Cohere's and Jina's clients."""

    ranker: Ranker

    def mount(self, api: Api) -> None:
        """Serve them."""
        api.mount(COHERE, self.cohere, hop=self.ranker.reranker.hop)
        api.mount(SHARED, self.shared, hop=self.ranker.reranker.hop)

    async def cohere(self, request: Request) -> Response:
        """Cohere v2."""
        body = await read_json(request, CohereRerankRequest)
        exchange = Exchange.of(request)
        options = RerankOptions(model=body.model, max_tokens_per_document=body.max_tokens_per_doc)
        with _lane(body.priority):
            ranking = await self.ranker.rank(exchange, body.query, body.documents, options, documents_param="documents")
        exchange.timed(**timings_ms(ranking.scores.timings))
        results = [{"index": ranked.index, "relevance_score": ranked.score} for ranked in ranking.results[: body.top_n]]
        warnings = ["relevant_spans is not supported here and was ignored."] if _wants_spans(body) else []
        return json_answer(
            {
                "id": exchange.call.request_id,
                "results": results,
                "meta": _meta("2", ranking, len(body.documents), warnings),
            },
            truncated_header(ranking.scores.truncated_documents),
        )

    async def shared(self, request: Request) -> Response:
        """Jina, and Cohere v1: each finds what it reads, and overlooks the rest."""
        body = await read_json(request, SharedRerankRequest)
        exchange = Exchange.of(request)
        texts = [_text_of(document, position, body.rank_fields) for position, document in enumerate(body.documents)]
        options = RerankOptions(
            model=body.model,
            max_tokens_per_document=body.max_tokens_per_doc,
            truncation=Truncation.REFUSE if body.truncation is False else Truncation.END,
        )
        ranking = await self.ranker.rank(exchange, body.query, texts, options, documents_param="documents")
        exchange.timed(**timings_ms(ranking.scores.timings))
        results = []
        for ranked in ranking.results[: body.top_n or None]:
            result: dict[str, Any] = {"index": ranked.index, "relevance_score": ranked.score}
            if body.return_documents is not False:
                given = body.documents[ranked.index]
                result["document"] = given if isinstance(given, dict) else {"text": given}
            results.append(result)
        tokens = ranking.scores.usage.tokens
        return json_answer(
            {
                "id": exchange.call.request_id,
                "model": ranking.scores.model,
                "object": "list",
                "usage": {"total_tokens": tokens, "prompt_tokens": tokens},
                "results": results,
                "meta": _meta("1", ranking, len(texts), []),
            },
            truncated_header(ranking.scores.truncated_documents),
        )


@contextmanager
def _lane(priority: int | None) -> Iterator[None]:
    """Cohere's priorities in our two lanes: 0 is its highest and its default; all others can wait."""
    call = current_call.get()
    if not priority or call is None:
        yield
        return
    token = current_call.set(replace(call, priority=Priority.BULK))
    try:
        yield
    finally:
        current_call.reset(token)


def _wants_spans(body: CohereRerankRequest) -> bool:
    return isinstance(body.relevant_spans, dict) and body.relevant_spans.get("mode") != "disabled"


def _text_of(document: str | dict[str, Any], position: int, rank_fields: list[str] | None) -> str:
    """What is read of a document: itself, its ``text``, or its ``rank_fields`` one after the other."""
    if isinstance(document, str):
        return document
    names = rank_fields or ["text"]
    values = [document[name] for name in names if name in document]
    if not values or not all(isinstance(value, str) for value in values):
        where = f"documents[{position}]"
        raise InvalidBody(f"{where} must hold a text in {' or '.join(names)}.", param=where)
    return "\n".join(values)


def _meta(version: str, ranking: Ranking, documents: int, warnings: list[str]) -> dict[str, Any]:
    return {
        "api_version": {"version": version},
        "billed_units": {"search_units": math.ceil(documents / _DOCUMENTS_PER_SEARCH_UNIT)},
        "tokens": {"input_tokens": ranking.scores.usage.tokens},
        "cached_tokens": 0,
        "warnings": warnings,
    }
