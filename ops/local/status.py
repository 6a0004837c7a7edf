"""What a gateway says of its hops: its ``/status``, read with nothing but the standard library."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ops.local.failures import OperatorError

_WILL_PASS = frozenset(
    {
        "",
        "ATTEMPT_TIMED_OUT",
        "CANARY_FAILED",
        "CHILD_STARTING",
        "DEADLINE_EXCEEDED",
        "DRAINING",
        "ENGINE_RESTARTING",
        "ENGINE_STUCK",
        "NOT_SERVING",
        "STARTING",
        "UNAVAILABLE",
        "WARMING_UP",
    }
)
"""Reason codes of a capability that loads or is restarted; any other of a worker that answers is its last word."""


@dataclass(frozen=True)
class HopState:
    """One hop, as the gateway sees it.

    Attributes:
        serving: whether calls go through: an endpoint serves, and the circuit breaker is not open.
        health: SERVING, NOT_SERVING, UNREACHABLE or UNKNOWN.
        reason: why it does not serve; empty where it does.
        hopeless: it does not serve, and waiting will not change that: its model cannot be used, for example.
        misfit: it cannot be reached because certificates do not fit.
        model: what it serves, with the engine; empty where it does not say.
        probe_ms: time that the gateway's last question to the worker took.
    """

    name: str
    endpoints: tuple[str, ...] = ()
    serving: bool = False
    health: str = "UNKNOWN"
    breaker: str = ""
    reason: str = ""
    hopeless: bool = False
    misfit: bool = False
    model: str = ""
    probe_ms: float | None = None


@dataclass(frozen=True)
class MeshState:
    """A gateway at one moment: whether it is ready, its hops, and why it could not be asked."""

    ready: bool
    hops: tuple[HopState, ...] = ()
    error: str = ""
    latency_ms: float | None = None
    locked: bool = False
    """Whether it answers, and wants another key or one at all."""


KEY_VARIABLE = "MESH_API_KEY"


def api_key() -> str:
    """The key that these commands show to a gateway which asks for one; empty where none is set."""
    return os.environ.get(KEY_VARIABLE, "").strip()


_WANTS_A_KEY = (
    f"asks for a key with the role operator. Make one with ./scripts/keys.sh add --tenant ops --role operator, and set "
    f"{KEY_VARIABLE}"
)


def fetch(gateway_url: str, *, timeout: float) -> MeshState:
    """Ask a gateway for its hops. Never raises: a gateway that does not answer is a state too."""
    began = time.monotonic()
    if "://" not in gateway_url:
        gateway_url = f"http://{gateway_url}"
    try:
        content = _get_json(f"{gateway_url.rstrip('/')}/status", timeout)
        hops = tuple(hop_state(hop) for hop in content["hops"])
    except urllib.error.HTTPError as error:
        if error.code in {401, 403}:
            return MeshState(ready=False, error=f"{gateway_url} {_WANTS_A_KEY}", locked=True)
        return MeshState(ready=False, error=f"{gateway_url} answers /status with {error.code} {error.reason}")
    except OSError as error:
        reason = getattr(error, "reason", error)
        return MeshState(ready=False, error=f"{gateway_url} does not answer: {reason}")
    except (ValueError, LookupError, TypeError, AttributeError, http.client.HTTPException):
        return MeshState(ready=False, error=f"{gateway_url} answers, but not as a gateway of this mesh does")
    return MeshState(ready=True, hops=hops, latency_ms=(time.monotonic() - began) * 1000)


def _get_json(url: str, timeout: float) -> Any:
    # The address is the operator's own; a proxy meant for the internet is not for a mesh.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    request = urllib.request.Request(url)  # noqa: S310 - the operator's own address
    if key := api_key():
        request.add_header("Authorization", f"Bearer {key}")
    with opener.open(request, timeout=timeout) as answer:
        return json.load(answer)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else with the key. No gateway of this mesh redirects."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Never."""


def hop_state(hop: Mapping[str, Any]) -> HopState:
    """A hop from its entry in ``/status``."""
    endpoints = hop["endpoints"]
    serving = bool(hop["serving"])
    telling = next((each for each in endpoints if each["health"] == "SERVING"), endpoints[0])
    health = str(telling["health"])
    return HopState(
        name=str(hop["name"]),
        endpoints=tuple(str(each["endpoint"]) for each in endpoints),
        serving=serving,
        health=health,
        breaker=str(hop["breaker"]["state"]),
        reason="" if serving else str(hop.get("reason") or ""),
        hopeless=health == "NOT_SERVING" and telling["reason_code"] not in _WILL_PASS,
        misfit=health == "UNREACHABLE" and str(telling["reason_code"]).startswith("TLS_"),
        model=describe_service(hop.get("serves") or {}),
        probe_ms=hop.get("info_ms"),
    )


def describe_service(serves: Mapping[str, Any]) -> str:
    """What a worker serves, in a few words, from its own account of itself; empty where it has given none."""
    if models := serves.get("models"):
        engine = serves.get("engine", "")
        return ", ".join(_describe_model({"engine": engine, **model}) for model in models)
    if chunkers := serves.get("chunkers"):
        return f"{', '.join(str(each['name']) for each in chunkers)} (PDF: {serves.get('pdf_pipeline')})"
    source = str(serves.get("source") or "")
    return "no GPU on this machine" if source == "none" else source


def _describe_model(model: Mapping[str, Any]) -> str:
    how = " ".join(str(model[key]) for key in ("method", "engine", "precision") if model.get(key))
    return f"{model['name']} ({how})" if how else str(model["name"])


def unlocked(state: MeshState) -> MeshState:
    """The state, where the gateway tells it to us. Otherwise nobody here could say when the mesh has come up."""
    if state.locked:
        raise OperatorError(f"{state.error}.", hint=f"{KEY_VARIABLE}=mesh_… ./scripts/start_torch_isolation.sh")
    return state
