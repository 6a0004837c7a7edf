"""Traces: where a request went and for how long, for whoever collects them by OpenTelemetry.

They are off unless the environment names a place to send them to, by OpenTelemetry's own variables. Off, ``active`` is
None, nothing of OpenTelemetry is imported, and each place that has something to tell costs its look at ``active``. On,
`mesh.tracing_sdk` stands behind it, the only module that knows OpenTelemetry.

No attribute holds what a user wrote: no prompt, no text, no file, no header.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Protocol

from mesh.context import CallContext, current_call

Value = str | int | float | bool | Sequence[str]
Attributes = Mapping[str, Value]

NO_ATTRIBUTES: Attributes = {}
ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
LAST_SPANS_SECONDS = 2.0
"""How long the end of a process waits for its last spans to be taken."""


class Kind(Enum):
    """What a span is to the one above it."""

    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"


class Span(Protocol):
    """A part of a request that is under way."""

    @property
    def traceparent(self) -> str:
        """The W3C header by which others become its children; it says too whether the trace is kept."""

    def rename(self, name: str) -> None:
        """Call it otherwise, now that more is known."""

    def note(self, attributes: Attributes) -> None:
        """Say more about it."""

    def tell(self, event: str, attributes: Attributes = NO_ATTRIBUTES) -> None:
        """Something happened now."""

    def end(self, *, error: str = "", unix_ns: int | None = None) -> None:
        """It is over, now or at that time; with ``error`` it has failed of that. A span that never ends is not kept."""


class Tracer(Protocol):
    """Begins spans."""

    def begin(  # noqa: PLR0913 - what a span is made of; all but the name has a default
        self,
        name: str,
        kind: Kind = Kind.INTERNAL,
        *,
        parent: str = "",
        attributes: Attributes = NO_ATTRIBUTES,
        links: Sequence[str] = (),
        unix_ns: int | None = None,
    ) -> Span:
        """A span that began now, or at that time.

        Args:
            name: one of few: what differs with each request is an attribute.
            kind: see Kind.
            parent: traceparent of the span above it; empty begins a trace.
            attributes: what is known by now.
            links: traceparents of others that it has to do with.
            unix_ns: when it began.
        """

    def stop(self, seconds: float) -> None:
        """Send what is left, for at most so many seconds."""


active: Tracer | None = None
"""Who takes spans. None while traces are off, which is nearly always: ask before anything else is done for a trace."""


def asked_for(environ: Mapping[str, str]) -> bool:
    """Whether the environment wants traces.

    Raises:
        SettingsError: it wants them by another exporter than OTLP.
    """
    from mesh.settings import SettingsError

    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter not in {"", "otlp", "none"}:
        raise SettingsError(
            f"OTEL_TRACES_EXPORTER={exporter} is not offered: traces leave by OTLP alone. Set it to otlp or none, or "
            "unset it; a collector turns OTLP into anything else."
        )
    if exporter == "none" or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return exporter == "otlp" or any(environ.get(name, "").strip() for name in ENDPOINT_VARIABLES)


def turn_on(process: str, environ: Mapping[str, str] = os.environ) -> None:
    """Send this process's spans where the environment says; nothing where it names no place.

    Args:
        process: the service's name in traces, where ``OTEL_SERVICE_NAME`` gives no other.
        environ: OpenTelemetry's variables. Its SDK reads more of them from the process's own.

    Raises:
        SettingsError: OpenTelemetry is not installed, or cannot do what its variables say.
    """
    global active  # noqa: PLW0603 - one switch for the process, thrown once at its start
    from mesh.settings import SettingsError

    if not asked_for(environ):
        return
    try:
        from mesh.tracing_sdk import SdkTracer
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"The environment asks for traces, and {error.name} is not installed. "
            "Install torch-isolation-mesh[tracing], or set OTEL_SDK_DISABLED=true."
        ) from error
    active = SdkTracer.exporting(process, environ)


def turn_off() -> None:
    """Send the last spans and take no more. Bounded, whatever the receiver does; nothing where traces are off."""
    global active
    tracer, active = active, None
    if tracer is not None:
        tracer.stop(LAST_SPANS_SECONDS)


def present() -> str:
    """The traceparent below which something of the present request belongs.

    Empty where traces are off, outside of a request, and where nobody keeps this trace.
    """
    if active is None or (call := current_call.get()) is None:
        return ""
    return call.traceparent if is_kept(call.traceparent) else ""


def is_kept(traceparent: str) -> bool:
    """Whether its trace was sampled: W3C's flag, the last bit."""
    return traceparent[-1:] in {"1", "3", "5", "7", "9", "b", "d", "f"}


def unix_ns(at: float, now: float) -> int:
    """The time of day at ``at`` on a clock that says ``now``, as spans want it."""
    return time.time_ns() - int((now - at) * 1e9)


@contextmanager
def task(name: str, *, parent: str = "", links: Sequence[str] = ()) -> Iterator[str]:
    """A span around what no request began; what is called inside belongs to it. Yields its traceparent.

    Empty, and without effect, where traces are off. Not for the body of a generator, which runs in others' contexts.
    """
    if active is None:
        yield ""
        return
    before = current_call.get() or CallContext()
    span = active.begin(name, parent=parent, links=links)
    token = current_call.set(before.below(span.traceparent))
    error = ""
    try:
        yield span.traceparent
    except Exception as failure:
        error = type(failure).__name__
        raise
    finally:
        current_call.reset(token)
        span.end(error=error)
