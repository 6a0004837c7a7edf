"""OpenAI's ``POST /v1/embeddings``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.answers import base64_rows, float_rows, json_answer, whole
from gateway.api import Api, Operation
from gateway.bodies import (
    ModelName,
    Texts,
    TokenIds,
    TokenLists,
    VendorBody,
    read_json,
    require_at_most,
    require_not_empty,
)
from gateway.catalogue import Capability, Catalogue
from gateway.exchange import Exchange
from gateway.input_types import LONGEST_NAME, with_input_type
from gateway.peers import Embedder
from gateway.settings import GatewaySettings
from gateway.vocabulary import OpenAIVocabulary
from mesh.clients.embedding import Embeddings, EmbedOptions, Timings, Truncation, Usage
from mesh.errors import InvalidRequest, NotFound

MODEL_EXAMPLE = "sentence-transformers/all-MiniLM-L6-v2"
TRUNCATED_HEADER = "x-truncated-inputs"


class EmbeddingsRequest(VendorBody):
    """OpenAI's request; ``truncate`` and ``input_type`` are NVIDIA NIM's additions, ``task`` is Jina's."""

    input: Annotated[
        str | Texts | TokenIds | TokenLists,
        Field(
            description="a text, a list of texts, or token ids of OpenAI's vocabulary (one list, or a list of lists)"
        ),
    ]
    model: ModelName = Field("", description="a served model or an alias; left out, the default one")
    dimensions: Annotated[int, Field(ge=1, le=65536)] | None = Field(None, description="a positive number")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="float or base64")
    user: str | None = None
    truncate: Literal["END", "START", "NONE"] | None = Field(
        None, description="what to do with over-long inputs: END (the default) keeps the beginning, NONE refuses"
    )
    input_type: Annotated[str, Field(max_length=LONGEST_NAME)] | None = Field(
        None,
        description="query, document, classification, clustering or similarity, as any vendor writes it, or the name "
        "of one of the model's own prompts",
    )
    task: Annotated[str, Field(max_length=LONGEST_NAME)] | None = Field(None, description="Jina's name for input_type")


_TRUNCATION = {"END": Truncation.END, "START": Truncation.START, "NONE": Truncation.REFUSE}

OPERATION = Operation(
    method="POST",
    path="/v1/embeddings",
    tag="OpenAI",
    summary="Embed texts",
    description=(
        "As OpenAI's. Inputs longer than the model reads are cut, and their positions named in `x-truncated-inputs`, "
        "unless `truncate` is `NONE`. `base64` is little-endian float32."
    ),
    body=EmbeddingsRequest,
    examples={
        "One text": {"model": MODEL_EXAMPLE, "input": "A circuit breaker stops calls to a peer that fails."},
        "Several, as numbers": {"model": MODEL_EXAMPLE, "input": ["one", "two"], "encoding_format": "float"},
    },
    answer={
        "object": "list",
        "model": MODEL_EXAMPLE,
        "data": [{"object": "embedding", "index": 0, "embedding": [0.0123, -0.0456]}],
        "usage": {"prompt_tokens": 12, "total_tokens": 12},
    },
)


@dataclass(frozen=True, slots=True)
class EmbeddingsRoute:
    """Answers OpenAI's embedding requests."""

    embedder: Embedder
    catalogue: Catalogue
    vocabulary: OpenAIVocabulary
    settings: GatewaySettings

    def mount(self, api: Api) -> None:
        """Serve it."""
        api.mount(OPERATION, self.create, hop=self.embedder.hop)

    async def create(self, request: Request) -> Response:
        """One vector per input, in their order."""
        body = await read_json(request, EmbeddingsRequest)
        exchange = Exchange.of(request)
        texts = await self._texts(body)
        options = EmbedOptions(
            model=self.catalogue.resolve(body.model),
            dimensions=body.dimensions,
            truncation=_TRUNCATION[body.truncate or "END"],
        )
        if body.input_type and body.task:
            raise InvalidRequest("State input_type or task, not both.", param="task")
        options = with_input_type(options, body.input_type or body.task)
        deadline = exchange.deadline(self.settings.timeouts.embedding_seconds)
        try:
            embeddings = whole(await self.embedder.embed(texts, options, deadline=deadline), len(texts))
        except NotFound:
            raise await self.catalogue.unknown(body.model, Capability.EMBEDDING) from None
        exchange.timed(**timings_ms(embeddings.timings))
        exchange.note(model=embeddings.model, inputs=len(texts), **usage_notes(embeddings.usage))
        return json_answer(_document(embeddings, body.encoding_format), truncated_header(embeddings.truncated_inputs))

    async def _texts(self, body: EmbeddingsRequest) -> list[str]:
        """The inputs as texts; OpenAI's token ids are never taken for the model's own."""
        given = body.input
        if isinstance(given, str):
            require_not_empty(given, "input")
            return [given]
        require_not_empty(given, "input")
        if isinstance(given[0], int):
            return await self.vocabulary.decode([given], param="input")
        require_at_most(len(given), self.settings.limits.max_inputs, "input")
        if isinstance(given[0], str):
            return given
        return await self.vocabulary.decode(given, param="input")


def timings_ms(timings: Timings) -> dict[str, float]:
    """A worker's timings as ``Server-Timing`` shows them."""
    return {
        "worker": timings.total_us / 1000,
        "tokenization": timings.tokenization_us / 1000,
        "queue": timings.queue_us / 1000,
        "inference": timings.inference_us / 1000,
    }


def usage_notes(usage: Usage) -> dict[str, int]:
    """What a request consumed, for its log line."""
    kept = {} if usage.cache_hits is None else {"cache_hits": usage.cache_hits}
    return {"tokens": usage.tokens, **kept}


def truncated_header(positions: tuple[int, ...]) -> dict[str, str]:
    """Names the inputs that were cut, as far as a header holds them."""
    if not positions:
        return {}
    shown = ",".join(str(position) for position in positions[:256])
    return {TRUNCATED_HEADER: shown if len(positions) <= 256 else f"{shown},..."}


def _document(embeddings: Embeddings, encoding: str | None) -> dict[str, object]:
    vectors: list[str] | list[list[float]]
    vectors = base64_rows(embeddings) if encoding == "base64" else float_rows(embeddings)
    return {
        "object": "list",
        "model": embeddings.model,
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)],
        "usage": _usage_document(embeddings.usage),
    }


def _usage_document(usage: Usage) -> dict[str, int]:
    """OpenAI's figures; beside them ours, where a cache is on: their clients read what they know."""
    document = {"prompt_tokens": usage.tokens, "total_tokens": usage.tokens}
    return document if usage.cache_hits is None else {**document, "cache_hits": usage.cache_hits}
