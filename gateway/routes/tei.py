"""Text Embeddings Inference: ``POST /embed``, ``POST /rerank``, ``GET /info`` and ``GET /health``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.answers import float_rows, json_answer, whole
from gateway.api import Api, Operation
from gateway.bodies import Texts, TokenIds, VendorBody, read_json, require_at_most, require_not_empty
from gateway.exchange import Exchange
from gateway.input_types import LONGEST_NAME, with_input_type
from gateway.peers import Embedder
from gateway.ranking import Ranker
from gateway.routes.embeddings import timings_ms, truncated_header, usage_notes
from gateway.settings import GatewaySettings
from mesh.clients.embedding import EmbedInputs, EmbedOptions, Timings, TokenInputs, Truncation, Usage
from mesh.clients.reranking import RerankOptions
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, Unavailable
from mesh.version import VERSION


class TeiEmbedRequest(VendorBody):
    """TEI's request. Numbers are ids of the served model's own vocabulary, unlike OpenAI's."""

    inputs: str | Annotated[list[str | int | TokenIds], Field(fail_fast=True)] = Field(
        description="a text, a list of texts, or ids of the model's own vocabulary (one list, or a list of lists)"
    )
    truncate: bool | None = Field(None, description="true (the default) cuts over-long inputs, false refuses them")
    truncation_direction: Literal["Left", "Right", "left", "right"] = Field("Right", description="Left or Right")
    prompt_name: Annotated[str, Field(max_length=LONGEST_NAME)] | None = Field(
        None, description="query, document, …, or the name of one of the model's own prompts"
    )
    normalize: bool = Field(True, description="true or false")
    dimensions: Annotated[int, Field(ge=1, le=65536)] | None = Field(None, description="a positive number")


class TeiRerankRequest(VendorBody):
    """TEI's request."""

    query: str = Field(description="a text")
    texts: Texts = Field(description="a list of texts")
    truncate: bool | None = Field(None, description="true (the default) cuts over-long texts, false refuses them")
    truncation_direction: Literal["Left", "Right", "left", "right"] = Field("Right", description="Left or Right")
    raw_scores: bool = Field(False, description="true or false")
    return_text: bool = Field(False, description="true or false")


EMBED = Operation(
    method="POST",
    path="/embed",
    tag="Text Embeddings Inference",
    summary="Embed texts",
    description="As TEI's: a bare array of vectors, timings in `x-…-time` headers.",
    body=TeiEmbedRequest,
    examples={"One text": {"inputs": "A circuit breaker stops calls to a peer that fails."}},
    answer=[[0.0123, -0.0456]],
)
RERANK = Operation(
    method="POST",
    path="/rerank",
    tag="Text Embeddings Inference",
    summary="Rank texts",
    description="As TEI's: a bare array, best first.",
    body=TeiRerankRequest,
    examples={
        "Two texts": {
            "query": "What does a circuit breaker do?",
            "texts": ["Bread is baked in an oven.", "It stops calls to a peer that fails."],
        }
    },
    answer=[{"index": 1, "score": 0.87}, {"index": 0, "score": 0.02}],
)
INFO = Operation(
    method="GET",
    path="/info",
    tag="Text Embeddings Inference",
    summary="What the embedding worker serves",
    answer={"model_id": "sentence-transformers/all-MiniLM-L6-v2", "model_dtype": "float32", "max_input_length": 256},
)
HEALTH = Operation(
    method="GET",
    path="/health",
    tag="Text Embeddings Inference",
    summary="Whether embeddings are served",
    description="As TEI's: an empty 200, or 503. For the gateway itself see /health/live and /health/ready.",
    probed=True,
)


@dataclass(frozen=True, slots=True)
class TeiRoutes:
    """Answers TEI's clients."""

    embedder: Embedder
    ranker: Ranker
    settings: GatewaySettings

    def mount(self, api: Api) -> None:
        """Serve them."""
        api.mount(EMBED, self.embed, hop=self.embedder.hop)
        api.mount(RERANK, self.rerank, hop=self.ranker.reranker.hop)
        api.mount(INFO, self.info)
        api.mount(HEALTH, self.health)

    async def embed(self, request: Request) -> Response:
        """A bare array of vectors, also for one input."""
        body = await read_json(request, TeiEmbedRequest)
        exchange = Exchange.of(request)
        inputs, count = self._inputs(body)
        options = EmbedOptions(
            dimensions=body.dimensions,
            normalize=body.normalize,
            truncation=_truncation(truncate=body.truncate, direction=body.truncation_direction),
        )
        options = with_input_type(options, body.prompt_name)
        deadline = exchange.deadline(self.settings.timeouts.embedding_seconds)
        embeddings = whole(await self.embedder.embed(inputs, options, deadline=deadline), count)
        exchange.note(model=embeddings.model, inputs=count, **usage_notes(embeddings.usage))
        headers = _headers(exchange, embeddings.usage, embeddings.timings)
        return json_answer(float_rows(embeddings), {**headers, **truncated_header(embeddings.truncated_inputs)})

    async def rerank(self, request: Request) -> Response:
        """A bare array of positions and scores."""
        body = await read_json(request, TeiRerankRequest)
        exchange = Exchange.of(request)
        options = RerankOptions(
            truncation=_truncation(truncate=body.truncate, direction=body.truncation_direction),
            raw_scores=body.raw_scores,
        )
        ranking = await self.ranker.rank(exchange, body.query, body.texts, options, documents_param="texts")
        results: list[dict[str, Any]] = []
        for ranked in ranking.results:
            result: dict[str, Any] = {"index": ranked.index, "score": ranked.score}
            if body.return_text:
                result["text"] = body.texts[ranked.index]
            results.append(result)
        scores = ranking.scores
        headers = _headers(exchange, scores.usage, scores.timings)
        return json_answer(results, {**headers, **truncated_header(scores.truncated_documents)})

    async def info(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint's signature
        """The embedding model, in TEI's words."""
        info = await self.embedder.info(deadline=Deadline.after(self.settings.timeouts.info_seconds))
        if not info.models:
            raise Unavailable("The embedding worker serves no model.", hop="embedding")
        model = info.models[0]
        return json_answer(
            {
                "model_id": model.name,
                "model_sha": model.revision or None,
                "model_dtype": model.precision,
                "model_type": {"embedding": {"pooling": model.pooling}},
                "max_input_length": model.max_input_tokens,
                "max_batch_tokens": info.limits.max_tokens_per_request,
                "max_client_batch_size": min(info.limits.max_inputs_per_request, self.settings.limits.max_inputs),
                "auto_truncate": True,
                "version": VERSION,
            }
        )

    async def health(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint's signature
        """Whether embeddings are served, as the probe last heard: asking costs the worker nothing."""
        if not self.embedder.hop.status().serving:
            raise Unavailable("The embedding worker does not serve; /status says why.", hop="embedding")
        return Response(status_code=200)

    def _inputs(self, body: TeiEmbedRequest) -> tuple[EmbedInputs, int]:
        given = body.inputs
        require_not_empty(given, "inputs")
        if isinstance(given, str):
            return [given], 1
        kinds = {type(item) for item in given}
        if kinds == {int}:
            return TokenInputs([_own_ids(given)]), 1
        require_at_most(len(given), self.settings.limits.max_inputs, "inputs")
        if kinds == {str}:
            return [item for item in given if isinstance(item, str)], len(given)
        if kinds == {list}:
            return TokenInputs([item for item in given if isinstance(item, list)]), len(given)
        raise InvalidRequest("inputs mixes texts and token ids; send them in two requests.", param="inputs")


def _own_ids(given: list[Any]) -> list[int]:
    if any(not 0 <= token < 2**32 for token in given):
        raise InvalidRequest("inputs holds a token id below 0 or above 4294967295.", param="inputs")
    return given


def _truncation(*, truncate: bool | None, direction: str) -> Truncation:
    if truncate is False:
        return Truncation.REFUSE
    return Truncation.START if direction.lower() == "left" else Truncation.END


def _headers(exchange: Exchange, usage: Usage, timings: Timings) -> dict[str, str]:
    """TEI's headers: milliseconds, counts, and the total as seen from here."""
    exchange.timed(**timings_ms(timings))
    total = f"{exchange.elapsed_ms():.0f}"
    return {
        "x-compute-type": "mesh",
        "x-compute-time": total,
        "x-compute-characters": str(usage.characters),
        "x-compute-tokens": str(usage.tokens),
        "x-total-time": total,
        "x-tokenization-time": f"{timings.tokenization_us / 1000:.0f}",
        "x-queue-time": f"{timings.queue_us / 1000:.0f}",
        "x-inference-time": f"{timings.inference_us / 1000:.0f}",
    }
