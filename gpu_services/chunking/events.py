"""What is said about one document: the order that goes into a child process and the events that come out of it.

Both cross the process border as JSON, never as pickle: a child that a hostile document has taken over can then say
wrong things about its own document and nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mesh.docling.chunks import Box, Chunk
from mesh.errors import Internal, InvalidRequest, MeshError, PayloadTooLarge

MAX_FRAME_BYTES = 32 * 1024 * 1024
"""Longest frame between worker and child. A chunk is bounded by its tokens and its characters, so this is slack."""

MAX_TRACEBACK = 8192
"""So many characters of one are told, the last."""

MAX_WINDOWS = 32
"""So many of a document's windows are told one by one; all of them are in its sums."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Pages that are converted so far; ``pages_total`` is 0 for formats without pages."""

    pages_done: int
    pages_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The document is done. Times are in microseconds, counted inside the child.

    ``windows`` are the first of them as the document was worked on: for each, when its conversion began, when it was
    converted and when it was chunked, since the order came.
    """

    media_type: str
    pages: int
    title: str
    warnings: tuple[str, ...]
    chunks: int = 0
    tokens: int = 0
    characters: int = 0
    conversion_us: int = 0
    chunking_us: int = 0
    schema_version: str = ""
    output_bytes: int = 0
    windows: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """The child is warm: it has chunked a document of its own and locked itself in."""

    docling_version: str
    sandbox: tuple[str, ...]
    warnings: tuple[str, ...]
    resident_bytes: int
    pdf_pipeline: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The document cannot be done; ``error`` is what its owner is told.

    ``traceback`` is for the log: where a fault of ours lies, by `mesh.tracebacks`, without a word of the document.
    """

    error: MeshError
    traceback: str = ""


Event = Chunk | Progress | Finished | Ready | Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one document may take."""

    max_pages: int
    max_unpacked_bytes: int
    max_seconds: float
    max_memory_bytes: int
    window_pages: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One document to do.

    ``output_path`` set means: convert only, and write docling's JSON there. ``tokenizer_path`` is a tokenizer.json.
    """

    document_path: str
    media_type: str
    filename: str
    merge_peers: bool = True
    max_tokens: int = 256
    tokenizer_path: str = ""
    output_path: str = ""
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSetup:
    """What a child has to know before its first document."""

    pdf_pipeline: Literal["native", "layout"]
    artifacts_path: str
    tokenizer_path: str
    max_memory_bytes: int
    max_output_bytes: int
    parent_pid: int = field(default=0)


_REFUSALS: dict[str, type[MeshError]] = {cls.code: cls for cls in (InvalidRequest, PayloadTooLarge, Internal)}


def encode_event(event: Event) -> bytes:
    """The event as one frame's JSON."""
    if isinstance(event, Refused):
        error = event.error
        code = error.code if error.code in _REFUSALS else Internal.code
        values = {"code": code, "reason": error.reason, "message": error.message, "traceback": event.traceback}
        return _json({"kind": "refused", **values})
    return _json({"kind": type(event).__name__.lower(), **asdict(event)})


def decode_event(frame: bytes) -> Event:
    """The event in a frame.

    Raises:
        ValueError: the frame is not an event; the child is not to be trusted any further.
    """
    try:
        values: dict[str, Any] = json.loads(frame)
        return _EVENTS[values.pop("kind")](values)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("A child's frame is not an event.") from error


def encode_order(order: Order | ChildSetup) -> bytes:
    """The order as one line of JSON."""
    return _json(asdict(order)) + b"\n"


def decode_order(line: bytes) -> Order:
    """The order in a line."""
    values = json.loads(line)
    return Order(**{**values, "limits": Limits(**values["limits"])})


def decode_setup(line: bytes) -> ChildSetup:
    """The setup in a line."""
    return ChildSetup(**json.loads(line))


def _chunk(values: dict[str, Any]) -> Chunk:
    boxes = tuple(Box(**box) for box in values.pop("boxes"))
    return Chunk(**{**values, "headings": tuple(values["headings"]), "pages": tuple(values["pages"])}, boxes=boxes)


def _finished(values: dict[str, Any]) -> Finished:
    windows = tuple(_window(*times) for times in values["windows"][:MAX_WINDOWS])
    return Finished(**{**values, "warnings": tuple(values["warnings"]), "windows": windows})


def _window(opened: int, converted: int, chunked: int) -> tuple[int, int, int]:
    return int(opened), int(converted), int(chunked)


def _ready(values: dict[str, Any]) -> Ready:
    return Ready(**{**values, "sandbox": tuple(values["sandbox"]), "warnings": tuple(values["warnings"])})


def _refused(values: dict[str, Any]) -> Refused:
    error = _REFUSALS[values["code"]](str(values["message"]), reason=str(values["reason"]))
    return Refused(error, str(values["traceback"])[-MAX_TRACEBACK:])


_EVENTS: dict[str, Callable[[dict[str, Any]], Event]] = {
    "chunk": _chunk,
    "progress": lambda values: Progress(**values),
    "finished": _finished,
    "ready": _ready,
    "refused": _refused,
}


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
