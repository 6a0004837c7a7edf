"""Which names the gateway answers to, and which pages of others may ask it for something."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.exchange import Exchange
from gateway.settings import GatewaySettings
from mesh.errors import Forbidden, InvalidRequest
from mesh.host_names import is_loopback, is_nobody_elses, without_port

_ASKS_ONLY = frozenset({"GET", "HEAD", "OPTIONS"})
_CROSS_SITE = b"cross-site"


class HostCheck:
    """Refuses requests for another host, with two hosts, or from another site's page.

    Args:
        app: what is inside.
        allowed: names that are answered to, ``*.example.com`` for all below one; None for every name. Addresses,
            ``localhost`` and names without a dot are always answered to: nobody else can make them lead here.
    """

    def __init__(self, app: ASGIApp, *, allowed: Sequence[str] | None) -> None:
        self._app = app
        self._is_ours = lru_cache(maxsize=256)(lambda host: allowed is None or _is_ours(host, allowed))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            self._check(scope)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Exchange.at(scope).headers
        # Not there in HTTP/1.0 alone, which no browser speaks.
        host = headers.get(b"host", b"")
        if host and not self._is_ours(host):
            raise InvalidRequest(
                "The request is for another host. If that name is right, add it to gateway.allowed_hosts.",
                reason="HOST_NOT_ALLOWED",
            )
        if len(headers) != len(scope["headers"]) and sum(name == b"host" for name, _ in scope["headers"]) > 1:
            raise InvalidRequest("The request names more than one host.", reason="HOST_REPEATED")
        if headers.get(b"sec-fetch-site") == _CROSS_SITE and scope["method"] not in _ASKS_ONLY:
            raise Forbidden("Pages of other sites cannot use this gateway.", reason="CROSS_SITE")


def reached_at(settings: GatewaySettings) -> str:
    """The address at which others reach the gateway.

    A container's listens on all addresses of its own, and is published on one of its host's.
    """
    return settings.published_host or settings.host


def allowed_hosts(settings: GatewaySettings) -> Sequence[str] | None:
    """The names that are answered to; None for every name.

    On a loopback address, or published on one, every name that is not listed is somebody else's. Elsewhere nobody knows
    by which names a load balancer or a cluster calls this gateway, so a list has to be written to be kept to.
    """
    listed = tuple(name.lower().removesuffix(".") for name in settings.allowed_hosts)
    if "*" in listed or not (listed or is_loopback(reached_at(settings))):
        return None
    return (reached_at(settings).lower(), *listed)


def _is_ours(host: bytes, allowed: Sequence[str]) -> bool:
    name = without_port(host.decode("latin-1"))
    return is_nobody_elses(name) or any(
        name.endswith(each[1:]) if each.startswith("*.") else name == each for each in allowed
    )
