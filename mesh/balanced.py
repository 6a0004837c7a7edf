"""A stub's channel that has no endpoint yet: each of its calls gets one when it is made."""

from __future__ import annotations

from typing import Any

from mesh.endpoint import Endpoint


class BalancedChannel:
    """What a generated stub takes for a channel: its methods go to whichever endpoint is chosen for each call."""

    def unary_unary(self, path: str, *arguments: Any, **options: Any) -> BalancedMethod:
        """One request, one reply."""
        return BalancedMethod("unary_unary", path, arguments, options)

    def unary_stream(self, path: str, *arguments: Any, **options: Any) -> BalancedMethod:
        """One request, many replies."""
        return BalancedMethod("unary_stream", path, arguments, options)

    def stream_unary(self, path: str, *arguments: Any, **options: Any) -> BalancedMethod:
        """Many requests, one reply."""
        return BalancedMethod("stream_unary", path, arguments, options)

    def stream_stream(self, path: str, *arguments: Any, **options: Any) -> BalancedMethod:
        """Many requests, many replies."""
        return BalancedMethod("stream_stream", path, arguments, options)


class BalancedMethod:
    """A method of a service, not yet of an endpoint.

    Attributes:
        name: the method's own name, without its service's.
    """

    __slots__ = ("_arguments", "_kind", "_options", "_path", "name")

    def __init__(self, kind: str, path: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.name = path.rpartition("/")[2]
        self._kind = kind
        self._path = path
        self._arguments = arguments
        self._options = options

    def on(self, endpoint: Endpoint) -> Any:
        """The same method at ``endpoint``."""
        return endpoint.method(self._kind, self._path, *self._arguments, **self._options)
