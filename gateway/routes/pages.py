"""Pages for people: ``/`` and ``/docs``. They load nothing from elsewhere, so they work without a network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from gateway.api import PlainRoute
from mesh.errors import NotFound

# Only what this gateway serves itself may run: a document's text that ends up on the page cannot call elsewhere.
_SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
_TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
_ASSETS = frozenset({"docs.js", "home.js", "mesh.css"})


@cache
def _page(name: str) -> bytes:
    return (files("gateway") / "pages" / name).read_bytes()


def _answer(name: str) -> Response:
    headers = {**_SECURITY, "content-type": _TYPES[name.rpartition(".")[2]], "cache-control": "no-cache"}
    return Response(_page(name), headers=headers)


@dataclass(frozen=True, slots=True)
class PageRoutes:
    """Serves the pages and what they are made of."""

    def mount(self, app: FastAPI) -> None:
        """Serve them, outside the API's own document."""
        for path, endpoint in (("/", self.home), ("/docs", self.docs), ("/pages/{name}", self.asset)):
            app.router.routes.append(PlainRoute(path, {"GET"}, endpoint))

    async def home(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint's signature
        """How every hop is now, and where to go from here."""
        return _answer("home.html")

    async def docs(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint's signature
        """The API, with examples that can be tried."""
        return _answer("docs.html")

    async def asset(self, request: Request) -> Response:
        """A page's script or style."""
        name = str(request.path_params["name"])
        if name not in _ASSETS:
            raise NotFound("There is no such file.", reason="ROUTE_NOT_FOUND")
        return _answer(name)
