"""Whether one process serves, as a container's health probe asks: ``python -m mesh.healthcheck TARGET``.

``TARGET`` is a worker's ``host:port``, asked by ``grpc.health.v1`` for the process as a whole, or the gateway's
``http://…/health/ready``. The exit code is 0 when it serves and 1 otherwise; a line says why. Needs no torch, and a
tenth of a second. A worker behind TLS is asked with its own certificate, which stands in the variables that they share.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

_CERTIFICATES = ("MESH_TLS_CA", "MESH_TLS_CERTIFICATE", "MESH_TLS_KEY")
ASK_SECONDS = 3.0
"""Less than the probe's own limit, so that it ends with a reason."""


def ask_worker(target: str, seconds: float = ASK_SECONDS) -> str:
    """Why the worker at ``target`` does not serve; empty where all its capabilities do."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    options = [("grpc.enable_http_proxy", 0)]
    if any(os.environ.get(name) for name in _CERTIFICATES):
        # Settings and cryptography take longer to load than all the rest.
        from mesh.settings import SettingsError
        from mesh.tls.own import own_channel

        try:
            opened = own_channel(target, options)
        except SettingsError as error:
            return str(error)
    else:
        opened = grpc.insecure_channel(target, options=options)
    with opened as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=seconds)
        except grpc.RpcError as error:
            return f"{target} does not answer: {error.code().name}"
    states = health_pb2.HealthCheckResponse
    if reply.status == states.SERVING:
        return ""
    return f"{target} says {states.ServingStatus.Name(reply.status)}: a model is being loaded, or its log says why"


def ask_gateway(url: str, seconds: float = ASK_SECONDS) -> str:
    """Why the gateway at ``url`` takes no requests; empty where it does."""
    import urllib.error
    import urllib.request

    # The probe asks its own container: a proxy meant for the internet has no part in it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=seconds).close()
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code}"
    except OSError as error:
        return f"{url} does not answer: {type(error).__name__}"
    return ""


def main(arguments: Sequence[str]) -> int:
    """Ask ``TARGET``."""
    if len(arguments) != 1:
        print("usage: python -m mesh.healthcheck HOST:PORT | http://HOST:PORT/health/ready", file=sys.stderr)
        return 2
    target = arguments[0]
    reason = ask_gateway(target) if target.startswith(("http://", "https://")) else ask_worker(target)
    print(reason or "serving")
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
