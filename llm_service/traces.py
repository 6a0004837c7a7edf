"""What the writing of an answer tells a trace: the wait for a place, the first token, the rest.

Told at the end, from times that were taken on the way: a token costs the same whether it is traced or not, but for one
generator in between.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from llm_service.generation import Event, Finish, Generation, Piece
from mesh import tracing
from mesh.clock import Clock
from mesh.errors import MeshError
from mesh.tracing import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Which answer is being written.

    Attributes:
        model: the name that callers use.
        engine: what writes it.
        arrived: when the request came, on ``clock``.
    """

    request: Generation
    model: str
    engine: str
    arrived: float
    clock: Clock


@contextmanager
def waiting(arrived: float, clock: Clock) -> Iterator[Callable[[], None]]:
    """Around a request that waits for a place, since ``arrived``; call what is yielded once it is had.

    A wait that ends without one was in vain, which the trace shall show; any other is told by `told`.
    """
    above = tracing.present()
    is_over = False

    def over() -> None:
        nonlocal is_over
        is_over = True

    try:
        yield over
    finally:
        if not is_over and above and (tracer := tracing.active) is not None:
            began = tracing.unix_ns(arrived, clock())
            tracer.begin("queue", parent=above, unix_ns=began).end(error="never_computed")


def told(events: AsyncGenerator[Event, None], about: Written) -> AsyncGenerator[Event, None]:
    """The same events; where the request is traced, its spans are told at their end. Call it when a place is had."""
    above = tracing.present()
    return _told(events, about, above) if above else events


async def _told(events: AsyncGenerator[Event, None], about: Written, above: str) -> AsyncGenerator[Event, None]:
    admitted = about.clock()
    first: float | None = None
    finish: Finish | None = None
    error = ""
    try:
        async with aclosing(events) as written:
            async for event in written:
                if first is None and isinstance(event, Piece):
                    first = about.clock()
                elif isinstance(event, Finish):
                    finish = event
                yield event
    except MeshError as failure:
        error = failure.reason
        raise
    except Exception as failure:
        error = type(failure).__name__
        raise
    finally:
        _tell(about, above, admitted=admitted, first=first, finish=finish, error=error)


def _tell(  # noqa: PLR0913 - what is known at the end; one place calls it, by names
    about: Written, above: str, *, admitted: float, first: float | None, finish: Finish | None, error: str
) -> None:
    if (tracer := tracing.active) is None:
        return
    now, now_ns = about.clock(), tracing.unix_ns(0.0, 0.0)

    def at(moment: float) -> int:
        return now_ns - int((now - moment) * 1e9)

    began, ended = at(admitted), now_ns
    tracer.begin("queue", parent=above, unix_ns=at(about.arrived)).end(unix_ns=began)
    operation = "chat" if about.request.prompt is None else "text_completion"
    whole = tracer.begin(
        f"{operation} {about.model}",
        Kind.CLIENT,
        parent=above,
        attributes=_attributes(about, operation, finish),
        unix_ns=began,
    )
    if first is not None:
        whole.note({"gen_ai.response.time_to_first_chunk": first - admitted})
        tracer.begin("first token", parent=whole.traceparent, unix_ns=began).end(unix_ns=at(first))
        rest = tracer.begin("generation", parent=whole.traceparent, unix_ns=at(first))
        rest.end(error=error, unix_ns=ended)
    if finish is None and not error:
        whole.note({"mesh.outcome": "cancelled"})
    whole.end(error=error, unix_ns=ended)


def _attributes(about: Written, operation: str, finish: Finish | None) -> dict[str, tracing.Value]:
    """What OpenTelemetry's conventions for generative models name, without a word of prompt or answer."""
    sampling = about.request.sampling
    attributes: dict[str, tracing.Value] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": about.engine,
        "gen_ai.request.model": about.model,
        "gen_ai.response.model": about.model,
    }
    if sampling.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = sampling.max_tokens
    if sampling.temperature is not None:
        attributes["gen_ai.request.temperature"] = sampling.temperature
    if finish is not None:
        attributes["gen_ai.response.finish_reasons"] = [ending.reason.value for ending in finish.endings]
        if finish.usage is not None:
            attributes["gen_ai.usage.input_tokens"] = finish.usage.prompt_tokens
            attributes["gen_ai.usage.output_tokens"] = finish.usage.completion_tokens
    return attributes
