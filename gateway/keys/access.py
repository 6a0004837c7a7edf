"""Which role a path needs, while keys are on. What is not named here needs an operator."""

from __future__ import annotations

from gateway.keys.records import Role

NOBODY: frozenset[Role] = frozenset()
"""No key is asked for: load balancers and container engines have none, and learn no more than whether it serves."""
_INFERENCE = frozenset({Role.INFERENCE})
_OPERATOR = frozenset({Role.OPERATOR})
_EITHER = frozenset(Role)

_BY_PATH = {
    # Static, without a word of this mesh: the pages ask for a key themselves, and show nothing without one.
    "/": NOBODY,
    "/try": NOBODY,
    "/docs": NOBODY,
    "/health": NOBODY,
    "/health/live": NOBODY,
    "/health/ready": NOBODY,
    "/embed": _INFERENCE,
    "/rerank": _INFERENCE,
    "/info": _EITHER,
    "/v1/models": _EITHER,
    "/openapi.json": _EITHER,
    "/v1/gpu": _OPERATOR,
    "/v1/gpu/stream": _OPERATOR,
}
_BELOW = (
    ("/v1/models/", _EITHER),
    ("/pages/", NOBODY),
    ("/v1/gpu/", _OPERATOR),
    # An API's unknown path is told to be unknown, as a typing error needs it, and not to be forbidden.
    ("/v1/", _INFERENCE),
    ("/v2/", _INFERENCE),
)


def roles_for(path: str) -> frozenset[Role]:
    """The roles of which a key needs one to ask for ``path``; none means that no key is needed."""
    known = _BY_PATH.get(path)
    if known is not None:
        return known
    return next((roles for prefix, roles in _BELOW if path.startswith(prefix)), _OPERATOR)
