"""Behaves like an engine's server, and misbehaves on demand: a process for tests of whoever supervises one.

With ``--port`` it serves as ``transformers serve`` does, with ``--uds`` on a Unix socket, as vLLM does.

It is run by its path in place of the engine's Python and needs the standard library alone. Like the real one it
computes on one thread, one request after another, and answers its health route meanwhile. A message's words say what
becomes of it:

``compute S``   computes for S seconds before it answers, on the processor
``pieces N``    writes N pieces, a tenth of a second between them
``hang``        is never answered, nor is anything after it; nothing is computed
``fail``        fails
``poison``      fails, and everything after it fails too
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from typing import Any

_computing = threading.Lock()
_poisoned = threading.Event()


class EngineFailedError(Exception):
    """The engine cannot do this."""


def written(words: list[str]) -> Iterator[str]:
    """The answer's pieces. Raises EngineFailedError."""
    wanted, number = words[0], float(words[1]) if len(words) > 1 else 0.0
    if wanted == "poison":
        _poisoned.set()
    if wanted == "fail" or _poisoned.is_set():
        raise EngineFailedError
    if wanted == "hang":
        threading.Event().wait()
    if wanted == "compute":
        until = time.monotonic() + number
        while time.monotonic() < until:
            sum(range(10_000))
    if wanted == "pieces":
        for piece in range(int(number)):
            yield f"{piece} "
            time.sleep(0.1)
        return
    yield "one"
    yield " two"


class Handler(BaseHTTPRequestHandler):
    """The routes that are used."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        """Health, and the load of an engine that computes one request at a time."""
        if self.path == "/metrics":
            running = int(_computing.locked())
            lines = f"vllm:num_requests_running {running}\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0\n"
            self._answer(200, lines.encode())
            return
        self._answer(200, b'{"status": "ok"}')

    def do_POST(self) -> None:
        """A completion as server-sent events."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        with _computing:
            try:
                self._stream(written(text.split() or [""]))
            except EngineFailedError:
                self._answer(500, b"CUDA error: device-side assert triggered")
            except OSError:
                self.close_connection = True  # the caller left

    def _stream(self, pieces: Iterator[str]) -> None:
        first = next(pieces, "")  # before the headers: what fails at once has a status of its own
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        count = 0
        for piece in chain([first], pieces):
            self._event({"choices": [{"delta": {"content": piece}}]})
            count += 1
        usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
        self._event({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage})
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, content: dict[str, Any]) -> None:
        line = f"data: {json.dumps(content)}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class UnixServer(ThreadingHTTPServer):
    """The same on a Unix socket."""

    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        """Bind to a path, which has neither port nor name."""
        self.socket.bind(str(self.server_address[0]))
        self.server_name, self.server_port = "engine", 0

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection; its peer has no address, and handlers want one."""
        connection, _ = self.socket.accept()
        return connection, ("engine", 0)


def main(arguments: list[str]) -> None:
    """Say a version where one is asked for, serve otherwise."""
    if "-c" in arguments:
        print(f"{arguments[-1]}\n0.0.fake")
        return
    if "--uds" in arguments:
        UnixServer((arguments[arguments.index("--uds") + 1], 0), Handler).serve_forever()
    port = int(arguments[arguments.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
