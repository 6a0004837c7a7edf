"""A tracer that keeps what it is told, for tests of who tells what."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mesh import tracing
from mesh.tracing import NO_ATTRIBUTES, Attributes, Kind

KEPT_TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
"""A caller's trace that is sampled."""


@dataclass(eq=False)
class RecordedSpan:
    """A span, and what was said of it. ``ended`` is None while it is under way; times are in nanoseconds."""

    name: str
    kind: Kind
    parent: str
    traceparent: str
    began: int
    attributes: dict[str, Any]
    links: list[str]
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    ended: int | None = None
    error: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        assert self.ended is not None  # noqa: S101 - a test that asks too early
        return (self.ended - self.began) / 1e9

    def rename(self, name: str) -> None:
        """See Span."""
        self.name = name

    def note(self, attributes: Attributes) -> None:
        """See Span."""
        self.attributes.update(attributes)

    def tell(self, event: str, attributes: Attributes = NO_ATTRIBUTES) -> None:
        """See Span."""
        self.events.append((event, dict(attributes)))

    def end(self, *, error: str = "", unix_ns: int | None = None) -> None:
        """See Span."""
        self.error = error
        self.ended = time.time_ns() if unix_ns is None else unix_ns


class RecordingTracer:
    """Keeps every span that was begun."""

    def __init__(self) -> None:
        self.begun: list[RecordedSpan] = []
        self._numbers = itertools.count(1)

    def begin(  # noqa: PLR0913 - see Tracer
        self,
        name: str,
        kind: Kind = Kind.INTERNAL,
        *,
        parent: str = "",
        attributes: Attributes = NO_ATTRIBUTES,
        links: Sequence[str] = (),
        unix_ns: int | None = None,
    ) -> RecordedSpan:
        """See Tracer."""
        number = next(self._numbers)
        trace, flags = (parent[3:35], parent[-2:]) if parent else (f"{number:032x}", "01")
        span = RecordedSpan(
            name=name,
            kind=kind,
            parent=parent,
            traceparent=f"00-{trace}-{number:016x}-{flags}",
            began=time.time_ns() if unix_ns is None else unix_ns,
            attributes=dict(attributes),
            links=list(links),
        )
        self.begun.append(span)
        return span

    def stop(self, seconds: float) -> None:
        """Nothing is left to send."""

    @property
    def spans(self) -> list[RecordedSpan]:
        """Those that ended, as they began."""
        return [span for span in self.begun if span.ended is not None]

    def named(self, name: str) -> list[RecordedSpan]:
        """Those that ended and are called so."""
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> RecordedSpan:
        """The only one of that name."""
        (span,) = self.named(name)
        return span


@contextmanager
def recording() -> Iterator[RecordingTracer]:
    """Traces are on inside the block."""
    tracer = RecordingTracer()
    before, tracing.active = tracing.active, tracer
    try:
        yield tracer
    finally:
        tracing.active = before
