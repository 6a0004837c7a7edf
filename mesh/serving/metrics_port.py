"""A worker's port for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server

from mesh.host_names import is_loopback, is_nobody_elses, without_port

_Application = Callable[..., Iterable[bytes]]


def tell_prometheus(host: str, port: int) -> WSGIServer:
    """Serve this process's metrics, on a thread, until the process ends.

    On a loopback address only under names that no other site can have: a page that points its own name there reads
    nothing.

    Raises:
        OSError: the port is taken.
    """
    server, _ = start_http_server(port, addr=host)
    if is_loopback(host):
        application = server.get_app()
        assert application is not None  # noqa: S101 - it was started with one
        server.set_app(_for_this_machine(application))
    return server


def _for_this_machine(application: _Application) -> _Application:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if is_nobody_elses(without_port(environ.get("HTTP_HOST", ""))):
            return application(environ, start_response)
        start_response("421 Misdirected Request", [("Content-Type", "text/plain")])
        return [b"The request is for another host.\n"]

    return answer
