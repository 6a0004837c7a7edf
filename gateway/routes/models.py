"""OpenAI's ``GET /v1/models``: what every worker serves now, by all its names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.answers import json_answer
from gateway.api import Api, Operation
from gateway.catalogue import Capability, Catalogue, ServedModel
from mesh.errors import NotFound

_OWNER = "torch-isolation-mesh"
_EXAMPLE = {
    "id": "sentence-transformers/all-MiniLM-L6-v2",
    "object": "model",
    "created": 1763600000,
    "owned_by": _OWNER,
    "capability": "embedding",
    "root": "sentence-transformers/all-MiniLM-L6-v2",
}
LIST = Operation(
    method="GET",
    path="/v1/models",
    tag="OpenAI",
    summary="What is served",
    description="As OpenAI's, with each model's `capability`. An alias is listed too; `root` is the model behind it.",
    answer={"object": "list", "data": [_EXAMPLE]},
)
ONE = Operation(
    method="GET",
    path="/v1/models/{id:path}",
    tag="OpenAI",
    summary="One served model",
    answer=_EXAMPLE,
    extra={"parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]},
)


@dataclass(frozen=True, slots=True)
class ModelRoutes:
    """Lists what is served. ``created`` is when this gateway started: workers do not say when a model was made."""

    catalogue: Catalogue
    created: int

    def mount(self, api: Api) -> None:
        """Serve them."""
        api.mount(LIST, self.index)
        api.mount(ONE, self.one)

    async def index(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint's signature
        """Every name that reaches a model now."""
        return json_answer({"object": "list", "data": await self._cards()})

    async def one(self, request: Request) -> Response:
        """The card of one name."""
        name = str(request.path_params["id"])
        cards = await self._cards()
        for card in cards:
            if card["id"] == name:
                return json_answer(card)
        names = ", ".join(card["id"] for card in cards) or "nothing, since no worker answers"
        raise NotFound(
            f"The model {name[:128]!r} is not served here. Served: {names}.", param="model", reason="MODEL_NOT_FOUND"
        )

    async def _cards(self) -> list[dict[str, Any]]:
        """One for each name: workers that serve the same model are one model to a caller."""
        cards: dict[tuple[str, Capability], dict[str, Any]] = {}
        for model in await self.catalogue.served():
            for name in (model.name, *model.aliases):
                cards.setdefault((name, model.capability), self._card(name, model))
        return list(cards.values())

    def _card(self, name: str, model: ServedModel) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": _OWNER,
            "capability": model.capability.value,
            "root": model.name,
        }
