"""Pages for people: ``/``, ``/try`` and ``/docs``. They load nothing from elsewhere, so they work without a network."""

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
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    # Text never becomes markup here, and the browser sees to it.
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "referrer-policy": "no-referrer",
}
_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
_ASSETS = frozenset(
    {"docs.js", "icon.svg", "mesh.css", "shared.js", "status.js", "status-parts.js", "try.js", "try-parts.js"}
)


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
        for path, endpoint in (
            ("/", self.status),
            ("/try", self.attempt),
            ("/docs", self.docs),
            ("/pages/{name}", self.asset),
        ):
            app.router.routes.append(PlainRoute(path, {"GET"}, endpoint))

    async def status(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint's signature
        """The mesh as it is now, drawn from ``/status/stream``."""
        return _answer("status.html")

    async def attempt(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint's signature
        """Every capability, to be tried."""
        return _answer("try.html")

    async def docs(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint's signature
        """The API, with examples that can be tried."""
        return _answer("docs.html")

    async def asset(self, request: Request) -> Response:
        """A page's script or style."""
        name = str(request.path_params["name"])
        if name not in _ASSETS:
            raise NotFound("There is no such file.", reason="ROUTE_NOT_FOUND")
        return _answer(name)
