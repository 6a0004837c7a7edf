"""A client of a gRPC port that says what no gRPC library would."""

from __future__ import annotations

import socket
import struct
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions

_USUAL = (
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "mesh"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


@dataclass
class Reply:
    """What came back on one stream.

    Attributes:
        headers: of the answer and of its end.
        reset: the stream was reset, or the connection was ended.
    """

    headers: dict[str, str] = field(default_factory=dict)
    reset: bool = False
    ended: bool = False

    @property
    def status(self) -> str:
        """GRPC's status; without one, HTTP's where that is an error, or ``reset``, or nothing."""
        if "grpc-status" in self.headers:
            return self.headers["grpc-status"]
        if self.reset:
            return "reset"
        return f"http {self.headers[':status']}" if ":status" in self.headers else ""


class RawClient:
    """One HTTP/2 connection. Streams are opened by hand, and answers are waited for no longer than is said."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        # What it sends is not to be checked, and what it receives is the peer's own.
        config = h2.config.H2Configuration(
            client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.connection = h2.connection.H2Connection(config)
        # Huffman's coding of a long value takes this library seconds.
        plain = partial(self.connection.encoder.encode, huffman=False)
        self.connection.encoder.encode = plain  # type: ignore[method-assign] # it has no other switch
        self.connection.initiate_connection()
        self.replies: dict[int, Reply] = {}
        self.over = False
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    def flush(self) -> None:
        """Send what was said so far."""
        with suppress(ConnectionError):
            self.socket.sendall(self.connection.data_to_send())

    def settle(self) -> None:
        """Hear what the server allows, and say that it was heard."""
        self.listen(2.0)

    def listen(self, seconds: float) -> None:
        """Take what comes, once."""
        self._receive(time.monotonic() + seconds)

    def open(self, path: str, *more: tuple[str, str], end: bool = False, flush: bool = True) -> int:
        """Send a call's headers; the stream's number."""
        said = {name for name, _ in more}
        usual = [pair for pair in _USUAL if pair[0] not in said]
        headers = [(":path", path), *usual, *more]
        headers.sort(key=lambda pair: not pair[0].startswith(":"))  # these come first
        stream = self.connection.get_next_available_stream_id()
        self.replies[stream] = Reply()
        self.connection.send_headers(stream, headers, end_stream=end)
        if flush:
            self.flush()
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = True, seconds: float = 20.0) -> None:
        """Send bytes as flow control lets them go; what is not taken by then is left."""
        ends = time.monotonic() + seconds
        at = 0
        while at < len(data) and not self.over and not self.replies[stream].reset and not self.replies[stream].ended:
            room = min(self.connection.local_flow_control_window(stream), self.connection.max_outbound_frame_size)
            if room > 0:
                piece = data[at : at + room]
                at += len(piece)
                self.connection.send_data(stream, piece, end_stream=end and at == len(data))
                self.flush()
            elif not self._receive(ends):
                return
        if not data and end:
            self.connection.end_stream(stream)
            self.flush()

    def wait(self, stream: int, seconds: float = 10.0) -> Reply:
        """The stream's reply once it has ended, or what has come of it by then."""
        ends = time.monotonic() + seconds
        reply = self.replies[stream]
        while not (reply.ended or reply.reset or self.over):
            if not self._receive(ends):
                break
        reply.reset = reply.reset or (self.over and not reply.ended)
        return reply

    def _receive(self, ends: float) -> bool:
        left = ends - time.monotonic()
        if left <= 0:
            return False
        self.socket.settimeout(left)
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            return False
        except ConnectionError:
            data = b""
        if not data:
            self.over = True
            return True
        try:
            events = self.connection.receive_data(data)
        except h2.exceptions.ProtocolError:
            self.over = True
            return True
        for event in events:
            self._note(event)
        self.flush()
        return True

    def _note(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ConnectionTerminated():
                self.over = True
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                for name, value in event.headers or ():
                    self.replies[event.stream_id or 0].headers[_text(name)] = _text(value)
            case h2.events.StreamEnded():
                self.replies[event.stream_id].ended = True
            case h2.events.StreamReset():
                self.replies[event.stream_id or 0].reset = True
            case h2.events.DataReceived():
                self.connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def framed(message: bytes, *, compressed: bool = False, length: int | None = None) -> bytes:
    """A message as gRPC frames it; ``length`` is what the frame says where that is not true."""
    return struct.pack(">?I", compressed, len(message) if length is None else length) + message


def bomb(mebibytes: int) -> bytes:
    """So many mebibytes of zeros, as gzip."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(2**20)
    return b"".join([*(packer.compress(zeros) for _ in range(mebibytes)), packer.flush()])
