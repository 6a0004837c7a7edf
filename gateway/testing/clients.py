"""A gateway that runs for a test, and clients that do what an HTTP library cannot."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from types import TracebackType
from typing import Any, Self

import uvicorn

from gateway.app import create_app
from gateway.connections import server_config
from gateway.door import Door
from gateway.lifecycle import Lifecycle
from gateway.settings import GatewaySettings
from gateway.testing.peers import FakePeers


class RunningGateway:
    """A gateway on a port of 127.0.0.1 (0: a free one), in a thread of its own, for clients that need a real socket.

    >>> with RunningGateway(GatewaySettings(), FakePeers()) as gateway:  # doctest: +SKIP
    ...     print(gateway.url)
    """

    def __init__(self, settings: GatewaySettings, peers: FakePeers, door: Door | None = None, port: int = 0) -> None:
        self.peers = peers
        self._socket = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        lifecycle = Lifecycle()
        self.door = door or Door.of(settings, lifecycle)
        app = create_app(settings, peers=peers.as_peers(), lifecycle=lifecycle, door=self.door)
        self._server = uvicorn.Server(
            server_config(app, settings, self.door, timeout_keep_alive=5, timeout_graceful_shutdown=2)
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        ends = time.monotonic() + 10
        while not self._server.started:
            if time.monotonic() > ends or not self._thread.is_alive():
                raise RuntimeError("The gateway did not start.")
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()


class RawRequest:
    """One request spoken in ASGI itself, for what an HTTP client cannot do: leave in the middle, or read slowly.

    ``say`` hands the gateway a piece of the body, ``leave`` hangs up. ``sent`` holds what came back so far.
    """

    def __init__(self, method: str, path: str, headers: dict[str, str] | None = None) -> None:
        self.sent: list[dict[str, Any]] = []
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._arrived = asyncio.Condition()
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": {},
        }

    def start(self, app: Any) -> asyncio.Task[None]:
        """Let ``app`` answer; the task ends when it has, or fails after ten seconds."""
        return asyncio.create_task(self._answered_by(app))

    async def _answered_by(self, app: Any) -> None:
        # A task of its own: a gateway that takes a cancellation for a leaving client must not swallow the test's.
        answering = asyncio.create_task(app(self._scope, self._incoming.get, self._send))
        await asyncio.wait({answering}, timeout=10)
        if not answering.done():
            answering.cancel()
            raise TimeoutError("The gateway did not answer.")
        answering.result()

    def say(self, body: bytes = b"", *, more: bool = False) -> None:
        """Send a piece of the body."""
        self._incoming.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        """Hang up."""
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def _send(self, message: Any) -> None:
        async with self._arrived:
            self.sent.append(message)
            self._arrived.notify_all()

    async def until(self, text: bytes) -> None:
        """Wait until the answer holds ``text``."""
        async with asyncio.timeout(5), self._arrived:
            await self._arrived.wait_for(lambda: text in self.body)

    @property
    def unheard(self) -> int:
        """How many pieces the gateway has not taken."""
        return self._incoming.qsize()

    @property
    def body(self) -> bytes:
        """The answer's body so far."""
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def status(self) -> int | None:
        """The answer's status, once it has begun."""
        return self.sent[0]["status"] if self.sent else None

    @property
    def is_whole(self) -> bool:
        """Whether the answer was ended properly."""
        return bool(self.sent) and not self.sent[-1].get("more_body", True)
