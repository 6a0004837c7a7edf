"""What surrounds every call of a worker: readiness, identifiers, a deadline, typed errors, metrics, one log line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from mesh import tracing
from mesh.context import CallContext, current_call
from mesh.errors import DeadlineExceeded, Internal, MeshError, Unavailable
from mesh.serving.calls import ServicerContext
from mesh.serving.health import Readiness
from mesh.serving.journal import CallJournal, MethodSeries
from mesh.serving.parsing import Frames, bounded, read
from mesh.serving.tracing import end_rpc, rpc_span
from mesh.telemetry import fields, get_logger
from mesh.tls.access import Access
from mesh.wire import grpc_code, to_trailing_metadata

log = get_logger(__name__)

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of the worker's own services. Health and reflection pass untouched, also while saturated."""

    def __init__(
        self,
        readiness: Readiness,
        services: frozenset[str],
        default_deadline_seconds: float,
        *,
        access: Access | None = None,
    ) -> None:
        self._readiness = readiness
        self._access = access
        self._services = services
        self._default_deadline_seconds = default_deadline_seconds
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._journal = CallJournal()
        self._admitted: dict[ServicerContext, asyncio.Task[Any] | None] = {}
        self._none_admitted = asyncio.Event()
        self._none_admitted.set()
        self._cut_off = False
        self.last_finished: dict[str, float] = {}

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of one of our own methods; its four kinds differ only in how replies leave."""
        name = handler_call_details.method
        if (known := self._handlers.get(name)) is not None:
            return known
        handler = await continuation(handler_call_details)
        # Any client may send any name, also one without a method.
        service, _, method = name.removeprefix("/").partition("/")
        if handler is None or service not in self._services:
            return handler
        series = MethodSeries(service, method)
        take: Any = Frames if handler.request_streaming else read
        if handler.response_streaming:
            behavior: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
            wrapped: Any = self._streaming(behavior, series, take)
        else:
            behavior = handler.stream_unary if handler.request_streaming else handler.unary_unary
            wrapped = self._single(behavior, series, take)
        self._handlers[name] = found = _with_behavior(handler, wrapped)
        return found

    async def all_answered(self) -> None:
        """Wait until every admitted call is over, its answer and status sent."""
        await self._none_admitted.wait()

    def cut_off(self) -> None:
        """End the admitted calls that are still under way, with a reason."""
        self._cut_off = True
        for task in self._admitted.values():
            if task is not None:
                task.cancel()

    def _single(self, behavior: Any, series: MethodSeries, take: Any) -> Any:
        async def serve(request: Any, context: ServicerContext) -> Any:
            async with self._around(series, context):
                return await behavior(take(request), context)

        return serve

    def _streaming(self, behavior: Any, series: MethodSeries, take: Any) -> Any:
        async def serve(request: Any, context: ServicerContext) -> AsyncIterator[Any]:
            # Closed at once when the caller leaves between two replies, not when the generator is collected.
            async with self._around(series, context), aclosing(behavior(take(request), context)) as replies:
                async for reply in replies:
                    yield reply

        return serve

    @asynccontextmanager
    async def _around(self, series: MethodSeries, context: ServicerContext) -> AsyncIterator[None]:
        """Everything around one call. Errors end it by ``abort``, so nothing of ours is raised past this point."""
        started = time.monotonic()
        call = CallContext.from_metadata(context.invocation_metadata() or ())
        span = None if tracing.active is None else rpc_span(tracing.active, series.service, series.method, call)
        current_call.set(call if span is None else call.below(span.traceparent))
        outcome = "ok"
        failure: MeshError | None = None
        series.in_flight.inc()
        try:
            async with asyncio.timeout(
                None if context.time_remaining() is not None else self._default_deadline_seconds
            ):
                if self._access is not None:
                    self._access.require(context, series.service, series.method)
                self._admit(series.service, context)
                yield
        except MeshError as error:
            failure = error
        except TimeoutError:
            failure = DeadlineExceeded("The call came without a deadline and took longer than the default allows.")
        except (asyncio.CancelledError, GeneratorExit):
            if not self._cut_off:
                outcome = "cancelled"
                raise
            failure = Unavailable("The worker ended before the call was done.", reason="DRAINING", retry_after=1.0)
        except Exception:
            log.exception("a call failed in a way that nothing foresaw", extra=fields(**series.names))
            failure = Internal("The worker failed on this request. Its log says why, under the request's id.")
        finally:
            seconds = time.monotonic() - started
            outcome = failure.code if failure else outcome
            if outcome == "ok" and series.method != "Info":
                # Only an answered request proves the engine; Info, refusals and failures need none.
                self.last_finished[series.service] = time.monotonic()
            series.finished(outcome, seconds)
            self._journal.finished(series, outcome, seconds, failure)
            if span is not None:
                end_rpc(span, outcome, failure)
        if failure is not None:
            await context.abort(grpc_code(failure), failure.message, to_trailing_metadata(failure))

    def _admit(self, service: str, context: ServicerContext) -> None:
        refusal = self._readiness.refusal(service)
        if refusal is not None:
            raise refusal
        self._admitted[context] = asyncio.current_task()
        self._none_admitted.clear()
        # Not at the handler's end: the answer leaves after it, and a server that stops in between loses it.
        context.add_done_callback(self._answered)  # type: ignore[arg-type]  # the stubs want a class, grpc a callable

    def _answered(self, context: ServicerContext) -> None:
        self._admitted.pop(context, None)
        if not self._admitted:
            self._none_admitted.set()


def _with_behavior(handler: grpc.RpcMethodHandler[Any, Any], behavior: Any) -> grpc.RpcMethodHandler[Any, Any]:
    makers: dict[tuple[bool, bool], Any] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make = makers[handler.request_streaming, handler.response_streaming]
    made: grpc.RpcMethodHandler[Any, Any] = make(
        behavior,
        request_deserializer=bounded(handler.request_deserializer),
        response_serializer=handler.response_serializer,
    )
    return made
