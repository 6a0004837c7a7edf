"""OpenAI's older ``POST /v1/completions``: a prompt is continued as it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.api import Api, Operation
from gateway.bodies import Texts, TokenIds, TokenLists, read_json, require_not_empty
from gateway.exchange import Exchange
from gateway.generation import HARMLESS, GenerationBody, Harmless, refuse_unsupported, sampling_of
from gateway.openai_answers import CompletionRendering
from gateway.vocabulary import OpenAIVocabulary
from gateway.writing import Scribe
from mesh.errors import InvalidRequest
from mesh.generation import MAX_TOP_LOGPROBS, Generation

# OpenAI's own default. Chat has none.
_DEFAULT_MAX_TOKENS = 16


class CompletionRequest(GenerationBody):
    """OpenAI's request. Unknown fields are ignored; known ones that are not supported are refused by name."""

    prompt: Annotated[
        str | Texts | TokenIds | TokenLists,
        Field(description="a text, a list of one text, or token ids of OpenAI's vocabulary"),
    ]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        None, description=f"a whole number from 0 to {MAX_TOP_LOGPROBS}"
    )
    best_of: Any = None
    echo: Any = None
    suffix: Any = None


_HARMLESS: Harmless = {**HARMLESS, "best_of": (None, 1), "echo": (None, False), "suffix": (None, "")}

OPERATION = Operation(
    method="POST",
    path="/v1/completions",
    tag="OpenAI",
    summary="Continue a prompt",
    description="As OpenAI's older endpoint: no chat template is applied, and `max_tokens` is 16 unless it is given.",
    body=CompletionRequest,
    examples={"A prompt": {"prompt": "A circuit breaker", "max_tokens": 32, "temperature": 0}},
    answer={
        "id": "cmpl-6f1c0d1e9f6b4d6c8f5a0b3c2d1e0f9a",
        "object": "text_completion",
        "created": 1763600000,
        "model": "mesh-demo",
        "choices": [
            {"index": 0, "text": " stops calls to a peer that fails.", "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 13},
    },
)


@dataclass(frozen=True, slots=True)
class CompletionRoute:
    """Continues prompts."""

    scribe: Scribe
    vocabulary: OpenAIVocabulary

    def mount(self, api: Api) -> None:
        """Serve it."""
        api.mount(OPERATION, self.create, hop=self.scribe.writers.hop)

    async def create(self, request: Request) -> Response:
        """The prompt's continuation."""
        body = await read_json(request, CompletionRequest)
        refuse_unsupported(body, _HARMLESS)
        generation = Generation(
            model=self.scribe.catalogue.resolve(body.model),
            prompt=await self._prompt(body),
            sampling=sampling_of(body, body.max_tokens or _DEFAULT_MAX_TOKENS, body.logprobs),
        )
        exchange = Exchange.of(request)
        rendering = CompletionRendering(exchange, choices=generation.choices, usage=body.wants_usage)
        return await self.scribe.answer(exchange, generation, rendering, stream=bool(body.stream))

    async def _prompt(self, body: CompletionRequest) -> str:
        given = body.prompt
        require_not_empty(given, "prompt")
        if isinstance(given, str):
            return given
        first = given[0]
        if isinstance(first, int):
            ids: Any = given
            return (await self.vocabulary.decode([ids], param="prompt"))[0]
        if len(given) > 1:
            raise InvalidRequest(
                "Several prompts in one request are not supported here; send them one by one.",
                param="prompt",
                reason="UNSUPPORTED_PARAMETER",
            )
        if isinstance(first, str):
            return first
        return (await self.vocabulary.decode([first], param="prompt"))[0]
