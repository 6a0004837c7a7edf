"""What the engine's batches tell a trace: how long each request waited, and which batches it was computed in.

Told from times that are known anyway, after the batch and on the event loop: the engine's thread only hands them over.
A request sees its own ``queue`` and, for each batch that it was part of, an ``inference``. The batch itself is one
span, below the ``inference`` of the request that had waited for longest, since its item is what the batch was cut
around; it is linked to every request in it, and the ``inference`` of the others to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from inference.admission import Entry, Ticket
from mesh import tracing
from mesh.clock import Clock, monotonic
from mesh.context import Priority
from mesh.tracing import Attributes, Tracer

_MOST_LINKS = 128
"""OpenTelemetry's own limit for the links of a span."""


@dataclass(frozen=True, slots=True)
class ComputedBatch:
    """A batch that the engine is done with, well or not.

    Attributes:
        tickets: the requests in it, oldest first.
        began: and ``ended``: on the batcher's clock.
        failure: the name of what went wrong; empty where nothing did.
    """

    tickets: Sequence[Ticket[Any, Any]]
    items: int
    tokens: int
    padded_tokens: int
    began: float
    ended: float
    failure: str = ""


class BatchTraces:
    """Tells of one batcher's work.

    Args:
        capability: what the batcher serves.
        clock: the batcher's.
    """

    def __init__(self, capability: str, clock: Clock) -> None:
        self._capability = capability
        self._clock = clock

    def computed(
        self,
        batch: Sequence[Entry[Any, Any]],
        began: float,
        ended: float,
        *,
        loop: asyncio.AbstractEventLoop | None,
        error: BaseException | None = None,
    ) -> None:
        """A batch is done, on the engine's thread: it returns at once."""
        if tracing.active is None:
            return
        tickets = {id(entry.ticket): entry.ticket for entry in batch if entry.ticket.traceparent}
        if not tickets or loop is None:
            return
        longest = max(entry.tokens for entry in batch)
        done = ComputedBatch(
            tickets=sorted(tickets.values(), key=lambda ticket: ticket.admitted_at),
            items=len(batch),
            tokens=sum(entry.tokens for entry in batch),
            padded_tokens=longest * len(batch),
            began=began,
            ended=ended,
            failure=type(error).__name__ if error is not None else "",
        )
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(self.tell, done)

    def tell(self, batch: ComputedBatch) -> None:
        """The spans of a batch."""
        if (tracer := tracing.active) is None:
            return
        at = self._times()
        began, ended = at(batch.began), at(batch.ended)
        about: Attributes = {
            "mesh.capability": self._capability,
            "mesh.batch.items": batch.items,
            "mesh.batch.requests": len(batch.tickets),
            "mesh.batch.tokens": batch.tokens,
        }
        shared = ""
        for ticket in batch.tickets:
            self._tell_queue(tracer, ticket, at(ticket.admitted_at), ended=began)
            inference = tracer.begin(
                "inference",
                parent=ticket.traceparent,
                attributes=about,
                links=[shared] if shared else [],
                unix_ns=began,
            )
            if not shared:
                requests = [each.traceparent for each in batch.tickets[:_MOST_LINKS]]
                padding = {**about, "mesh.batch.padding_tokens": batch.padded_tokens - batch.tokens}
                one = tracer.begin(
                    "batch", parent=inference.traceparent, attributes=padding, links=requests, unix_ns=began
                )
                shared = one.traceparent
                one.end(error=batch.failure, unix_ns=ended)
            inference.end(error=batch.failure, unix_ns=ended)

    def left(self, ticket: Ticket[Any, Any]) -> None:
        """A request ended. One that no batch took waited in vain, which its trace shall show."""
        if ticket.traceparent and ticket.started_at is None and (tracer := tracing.active) is not None:
            at = self._times()
            self._tell_queue(tracer, ticket, at(ticket.admitted_at), ended=at(self._clock()), error="never_computed")

    def _tell_queue(self, tracer: Tracer, ticket: Ticket[Any, Any], began: int, *, ended: int, error: str = "") -> None:
        if ticket.queue_told:
            return  # its first batch did
        ticket.queue_told = True
        lane: Attributes = {"mesh.capability": self._capability, "mesh.priority": ticket.priority.value}
        tracer.begin("queue", parent=ticket.traceparent, attributes=lane, unix_ns=began).end(error=error, unix_ns=ended)

    def _times(self) -> Callable[[float], int]:
        """From the batcher's clock to the time of day."""
        now, now_ns = self._clock(), tracing.unix_ns(0.0, 0.0)
        return lambda at: now_ns - int((now - at) * 1e9)


def tell_tokenized(began: float, *, items: int, tokens: int, priority: Priority, clock: Clock = monotonic) -> None:
    """The present request's texts were tokenized since ``began``, on ``clock``. Call it where traces are on."""
    tracer, above = tracing.active, tracing.present()
    if tracer is None or not above:
        return
    about: Attributes = {"mesh.items": items, "mesh.tokens": tokens, "mesh.priority": priority.value}
    tracer.begin("tokenize", parent=above, attributes=about, unix_ns=tracing.unix_ns(began, clock())).end()
