"""How a route describes itself, once: the same description mounts it and documents it in OpenAPI."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from gateway.exchange import Exchange
from gateway.peers import PeerHop
from mesh.version import VERSION

Endpoint = Callable[[Request], Awaitable[Response]]

_DESCRIPTION = (
    "A torch-free gateway in front of workers for embedding, reranking, chunking, GPU status and language models. "
    "It speaks the dialects of OpenAI, Anthropic, Cohere, Jina and Text Embeddings Inference, so that their own "
    "clients work unmodified. Every answer carries `x-request-id` and `server-timing`; `x-request-timeout-ms` bounds "
    "the time that a request may take."
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    Attributes:
        body: the model that the request's body is read with; None where there is none.
        examples: request bodies that work, by what they show.
        answer: an answer as it really looks.
        answer_type: its media type.
        extra: further OpenAPI keys of the operation.
        probed: whether load balancers ask for it, so that HEAD is answered as GET, by the server without the body.
    """

    method: str
    path: str
    summary: str
    tag: str
    description: str = ""
    body: type[BaseModel] | None = None
    examples: dict[str, Any] = field(default_factory=dict)
    answer: Any = None
    answer_type: str = "application/json"
    extra: dict[str, Any] = field(default_factory=dict)
    probed: bool = False


@dataclass(frozen=True, slots=True)
class _Served:
    """An endpoint as an ASGI app. A full or broken hop refuses before a byte of the body is read or parsed."""

    endpoint: Endpoint
    hop: PeerHop | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self.hop is not None:
            self.hop.require_room(Exchange.at(scope).call.priority)
        answer = await self.endpoint(Request(scope, receive, send))
        await answer(scope, receive, send)


class PlainRoute(Route):
    """A route without FastAPI's dependencies, exit stacks and handlers, none of which an endpoint here uses."""

    def __init__(self, path: str, methods: Set[str], endpoint: Endpoint, hop: PeerHop | None = None) -> None:
        super().__init__(path, _Served(endpoint, hop), include_in_schema=False)
        self.hop = hop
        # Exactly these: Starlette would add HEAD to every GET, which would begin streams that nobody reads.
        self.methods = set(methods)
        # Starlette's "$" also stands before a line break at the end. Whoever decides by the path, as roles and limits
        # do, would see another path than the one that is served.
        self.path_regex = re.compile(self.path_regex.pattern.removesuffix("$") + r"\Z")

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As Starlette's; the metrics learn the path's template."""
        match, found = super().matches(scope)
        if match is not Match.NONE:
            found["route"] = self
        return match, found


class Exact:
    """Finds routes whose paths have no parameters by one look-up, and leaves all other paths to the router.

    The router tries its routes one after the other, which costs the tenth as much as a refusal.
    """

    def __init__(self, router: APIRouter) -> None:
        self._router = router
        self._routes = {
            (method, route.path): route
            for route in router.routes
            if isinstance(route, PlainRoute) and not route.param_convertors
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self._router(scope, receive, send)
            return
        scope["route"] = route
        await route.app(scope, receive, send)


class Api:
    """Mounts operations on an app and writes its OpenAPI document."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        # FastAPI's routes describe; plain ones serve.
        self._described = APIRouter()
        self._models: list[type[BaseModel]] = []
        self._document: dict[str, Any] | None = None
        self.routes: dict[tuple[str, str], PlainRoute] = {}
        """What was mounted, by its own method and path."""
        app.openapi = self.openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend its document

    def mount(self, operation: Operation, endpoint: Endpoint, *, hop: PeerHop | None = None) -> None:
        """Serve ``operation`` by ``endpoint``, which reads its body itself: FastAPI would know one dialect.

        ``hop`` is the one that the endpoint calls: it is asked for room first, before the body is read.
        """
        methods = {operation.method, "HEAD"} if operation.probed else {operation.method}
        route = PlainRoute(operation.path, methods, endpoint, hop)
        self._app.router.routes.append(route)
        self.routes[operation.method, operation.path] = route
        self._describe(operation, endpoint)

    def _describe(self, operation: Operation, endpoint: Endpoint) -> None:
        openapi_extra = dict(operation.extra)
        if operation.body is not None:
            self._models.append(operation.body)
            openapi_extra["requestBody"] = _request_body(operation)
        content = {operation.answer_type: {"example": operation.answer} if operation.answer is not None else {}}
        self._described.add_api_route(
            operation.path,
            endpoint,
            methods=[operation.method],
            response_model=None,
            summary=operation.summary,
            description=operation.description,
            tags=[operation.tag],
            responses={200: {"description": "The answer.", "content": content}},
            openapi_extra=openapi_extra,
        )

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document; made at the first request for it."""
        if self._document is None:
            document = get_openapi(
                title="Torch Isolation Mesh", version=VERSION, description=_DESCRIPTION, routes=self._described.routes
            )
            _, schemas = models_json_schema(
                [(model, "validation") for model in dict.fromkeys(self._models)],
                ref_template="#/components/schemas/{model}",
            )
            components = document.setdefault("components", {})
            components.setdefault("schemas", {}).update(schemas.get("$defs", {}))
            self._document = document
        return self._document


def _request_body(operation: Operation) -> dict[str, Any]:
    assert operation.body is not None  # noqa: S101 - the caller asked for it
    content: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{operation.body.__name__}"}}
    if operation.examples:
        content["examples"] = {
            f"example{number}": {"summary": summary, "value": value}
            for number, (summary, value) in enumerate(operation.examples.items(), 1)
        }
    return {"required": True, "content": {"application/json": content}}
