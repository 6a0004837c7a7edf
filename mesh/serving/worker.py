"""A worker process from its first line to its exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import grpc.aio
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh import tracing
from mesh.channel import SERVER_OPTIONS, message_size_options
from mesh.errors import Internal, MeshError
from mesh.serving.capability import Capability
from mesh.serving.health import Readiness
from mesh.serving.interceptor import CallInterceptor
from mesh.serving.metrics_port import tell_prometheus
from mesh.serving.reflecting import offer_reflection
from mesh.serving.watchdog import Watchdog, WatchdogLimits
from mesh.settings import EXIT_SETTINGS, SettingsError, WorkerSettings
from mesh.telemetry import configure_logging, fields, get_logger
from mesh.tls.configured import server_tls

if TYPE_CHECKING:  # cryptography is not loaded for a worker without TLS
    from mesh.tls.server import ServerTls

log = get_logger(__name__)

EXIT_OK = 0
EXIT_PORT_IN_USE = 2
EXIT_STUCK = 70
"""EX_SOFTWARE: the engine is stuck; the supervisor starts a fresh process."""

_GOODBYE_SECONDS = 0.2
"""For the last answers to leave."""
_STOP_SECONDS = 10.0
"""For the capabilities to end what they began, once no call is left. An engine in a process of its own has five."""

SettingsT = TypeVar("SettingsT", bound=WorkerSettings)
_HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Worker:
    """One gRPC server with its capabilities. ``start`` opens the port at once and loads models behind it.

    With ``tls`` every caller shows a certificate, and calls what its name may; without, the port is plaintext.
    """

    def __init__(
        self, settings: WorkerSettings, capabilities: Sequence[Capability], *, tls: ServerTls | None = None
    ) -> None:
        self._settings = settings
        self._tls = tls
        self._capabilities = tuple(capabilities)
        services = [capability.service for capability in capabilities]
        self._readiness = Readiness(services)
        self._interceptor = CallInterceptor(
            self._readiness,
            frozenset(services),
            settings.default_deadline_seconds,
            access=tls.access if tls is not None else None,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._over = asyncio.Event()
        self._exit_code = EXIT_OK
        self.port = 0

    async def start(self) -> None:
        """Open the port, say NOT_SERVING, and begin to load every capability at once.

        Raises:
            OSError: the port cannot be had.
        """
        options = (*SERVER_OPTIONS, *message_size_options(self._settings.max_message_bytes))
        self._server = grpc.aio.server(interceptors=[self._interceptor], options=options)
        for capability in self._capabilities:
            capability.register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._readiness.servicer, self._server)
        if self._tls is None if self._settings.reflection is None else self._settings.reflection:
            offer_reflection(self._server, [*(each.service for each in self._capabilities), _HEALTH_SERVICE])
        address = f"{self._settings.host}:{self._settings.port}"
        try:
            if self._tls is not None:
                self.port = self._tls.listen(self._server, address)
            else:
                self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(
                f"Cannot listen on {address}: another process has the port, or the address is not ours."
            ) from error
        await self._readiness.announce()
        await self._server.start()
        security = "mutual TLS" if self._tls is not None else "plaintext"
        log.info("listening", extra=fields(address=f"{self._settings.host}:{self.port}", security=security))
        if self._tls is not None:
            self._spawn(self._tls.watch())
        for capability in self._capabilities:
            self._spawn(self._bring_up(capability))

    async def wait(self) -> int:
        """Wait until the worker is told to end, drain, and return the exit code.

        The server itself is left to the process's end: a connection that breaks tells the calls that are on their way
        UNAVAILABLE, while gRPC's own stop tells them CANCELLED, which no client tries again.
        """
        await self._over.wait()
        await self._drain()
        return self._exit_code

    def end(self) -> None:
        """Ask the worker to drain and end. The second time it ends at once."""
        if self._over.is_set():
            log.warning("told twice to end: ending at once")
            os._exit(1)
        log.info("draining", extra=fields(grace_seconds=self._settings.drain_grace_seconds))
        self._over.set()

    async def stop(self) -> None:
        """Drain, and close the port."""
        await self._drain()
        await self._server.stop(0)

    async def _drain(self) -> None:
        """NOT_SERVING, time for clients to see it, then no new calls; admitted ones finish within the grace.

        The port stays open meanwhile: a closed one would drop calls that are on their way, while a refusal with its
        reason lets the caller's hop try elsewhere.
        """
        await self._readiness.drain()
        await asyncio.sleep(self._settings.drain_notice_seconds)
        self._readiness.close()
        try:
            async with asyncio.timeout(self._settings.drain_grace_seconds):
                await self._interceptor.all_answered()
        except TimeoutError:
            log.warning("the grace is over: ending the calls that are still under way")
            self._interceptor.cut_off()
        await asyncio.sleep(_GOODBYE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stop_capabilities()

    async def _stop_capabilities(self) -> None:
        """Side by side, so that one that hangs holds up no other, and the process's end only for a while."""
        stops = [asyncio.create_task(_stopped(capability)) for capability in self._capabilities]
        if not stops:
            return
        _, hanging = await asyncio.wait(stops, timeout=_STOP_SECONDS)
        if hanging:
            log.warning("a capability does not stop: ending without it", extra=fields(capabilities=len(hanging)))
        for task in hanging:
            task.cancel()

    async def _bring_up(self, capability: Capability) -> None:
        try:
            await capability.start()
            reason = capability.unhealthy() if capability.unhealthy else None
        except MeshError as error:
            await self._readiness.set(capability.service, error)
            return
        except Exception:
            log.exception("a capability did not start", extra=fields(service=capability.service))
            failed = Internal("The capability failed to start; the worker's log has the traceback.")
            await self._readiness.set(capability.service, failed)
            return
        await self._readiness.set(capability.service, reason)
        watchdog = Watchdog(
            capability,
            self._readiness,
            limits=WatchdogLimits(
                stuck_seconds=self._settings.watchdog_seconds,
                canary_interval_seconds=self._settings.canary_interval_seconds,
                canary_seconds=self._settings.canary_seconds or self._settings.watchdog_seconds,
                canary_retry_seconds=self._settings.canary_retry_seconds,
            ),
            last_traffic=lambda: self._interceptor.last_finished.get(capability.service, 0.0),
            give_up=self._give_up,
        )
        await watchdog.run()

    def _give_up(self, why: str) -> None:
        log.critical("ending for the supervisor to restart", extra=fields(reason=why))
        # A thread stuck in a device call cannot be joined, so the interpreter cannot end in the ordinary way. The
        # second lets health watchers hear NOT_SERVING first.
        asyncio.get_running_loop().call_later(1.0, os._exit, EXIT_STUCK)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))


async def _stopped(capability: Capability) -> None:
    try:
        await capability.stop()
    except Exception:
        log.exception("a capability did not stop", extra=fields(service=capability.service))


async def _serve(settings: WorkerSettings, capabilities: Sequence[Capability], tls: ServerTls | None) -> int:
    worker = Worker(settings, capabilities, tls=tls)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.end)
    try:
        if settings.metrics_port:
            tell_prometheus(settings.host, settings.metrics_port)
        await worker.start()
    except OSError as error:
        log.critical(str(error))
        return EXIT_PORT_IN_USE
    code = await worker.wait()
    tracing.turn_off()
    logging.shutdown()
    os._exit(code)  # see Worker.wait; it also spares waiting for a device call that never returns


def run(process: str, settings_class: type[SettingsT], offer: Callable[[SettingsT], Sequence[Capability]]) -> int:
    """A worker's ``main``: read the settings, serve until SIGTERM or SIGINT, drain, and end the process.

    It returns, with the exit code, only where it could not serve.

    Args:
        process: the name in log lines.
        settings_class: what the worker can be told.
        offer: makes its capabilities. It is called before the event loop runs: whatever needs a loop belongs into
            their ``start``.
    """
    try:
        settings = settings_class.load()
        configure_logging(process, settings.log_format)
        tls = server_tls()
        tracing.turn_on(process)
    except SettingsError as error:
        print(f"{process}: {error}", file=sys.stderr)
        return EXIT_SETTINGS
    return uvloop.run(_serve(settings, offer(settings), tls))
