"""The process that a document is opened in: `python -m gpu_services.chunking.child`.

It reads one line with its setup, warms up, locks itself in, says that it is ready, and then does one order (a line of
JSON) after another until its input closes. Events go out as frames: four bytes of length, then JSON. Nothing else is
ever written there: the libraries' prints and logs go to stderr.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from gpu_services.chunking.events import (
    MAX_WINDOWS,
    ChildSetup,
    Event,
    Finished,
    Order,
    Progress,
    Ready,
    Refused,
    decode_order,
    decode_setup,
    encode_event,
)
from gpu_services.chunking.kinds import DocumentKind, declared_kind, recognise
from gpu_services.chunking.sandbox import allow_cpu_seconds, die_with_parent, lock_in, resident_bytes
from mesh.errors import Internal, InvalidRequest, MeshError, PayloadTooLarge
from mesh.tracebacks import without_words

if TYPE_CHECKING:
    from gpu_services.chunking.conversion import Converter
    from gpu_services.chunking.source import Source, Window

Emit = Callable[[Event], None]

# torch and transformers cost two seconds and 200 MB to import and only the layout pipeline uses them. docling and
# docling-core ask for them in passing and do without: None makes the import fail as if they were not installed.
_UNUSED_BY_NATIVE = ("torch", "torchvision", "transformers", "sentence_transformers", "onnxruntime")


def main() -> int:
    """Serve orders until the input closes."""
    setup = decode_setup(sys.stdin.buffer.readline())
    die_with_parent(setup.parent_pid)
    emit = _emitter()
    if setup.pdf_pipeline == "native":
        sys.modules.update(dict.fromkeys(_UNUSED_BY_NATIVE))  # type: ignore[arg-type]
    ready = _warm_up(setup)
    emit(ready.announcement)
    for line in sys.stdin.buffer:
        order = decode_order(line)
        allow_cpu_seconds(order.limits.max_seconds)
        emit(_outcome(ready.converter, order, emit))
    return 0


@dataclass(frozen=True, slots=True)
class _Warm:
    converter: Converter
    announcement: Ready


def _warm_up(setup: ChildSetup) -> _Warm:
    """Import everything, chunk documents of our own, then give up every right that is not needed any more."""
    from importlib.metadata import version

    from gpu_services.chunking.conversion import Converter
    from gpu_services.chunking.warmup import warm_up_documents

    converter = Converter(setup.pdf_pipeline, setup.artifacts_path)
    warm_up_documents(converter, setup)
    enforced, warnings = lock_in(setup.max_memory_bytes, setup.max_output_bytes)
    announcement = Ready(
        docling_version=version("docling-slim"),
        sandbox=enforced,
        warnings=warnings,
        resident_bytes=resident_bytes(),
        pdf_pipeline=setup.pdf_pipeline,
    )
    return _Warm(converter, announcement)


def _outcome(converter: Converter, order: Order, emit: Emit) -> Event:
    """Do one document; the last event about it."""
    try:
        return do_order(converter, order, emit)
    except MeshError as error:
        return Refused(error)
    except (MemoryError, RecursionError):
        return Refused(
            PayloadTooLarge(
                f"The document takes more than the {order.limits.max_memory_bytes // 2**20} MiB of memory "
                "that one may; split it and send the parts.",
                reason="DOCUMENT_MEMORY",
            )
        )
    except Exception as error:
        return Refused(
            Internal("The document could not be processed because of a fault here; it is in the worker's log."),
            without_words(error),
        )


def do_order(converter: Converter, order: Order, emit: Emit) -> Finished:
    """Convert and chunk one document, giving out chunks as pages are done.

    Raises:
        MeshError: why it cannot be done.
    """
    from gpu_services.chunking.source import Source

    declared = declared_kind(order.media_type, order.filename)
    path = Path(order.document_path)
    kind = recognise(path, declared)
    source = Source(_with_ending(path, kind), kind, Path(order.filename).name or "document", order.limits)
    return _convert(converter, order, source) if order.output_path else _chunk(converter, order, source, emit)


def _with_ending(path: Path, kind: DocumentKind) -> Path:
    """The same file under a name with its kind's ending, without which openpyxl opens nothing."""
    named = path.with_suffix(kind.ending)
    if named != path:
        named.unlink(missing_ok=True)
        named.symlink_to(path)
    return named


def _chunk(converter: Converter, order: Order, source: Source, emit: Emit) -> Finished:
    from mesh.docling.chunker import WindowedChunker
    from mesh.docling.tokens import counter_for

    clock = _Stopwatch()
    counter = counter_for(order.tokenizer_path)
    chunker = WindowedChunker(counter, max_tokens=order.max_tokens, merge_peers=order.merge_peers)
    for window in clock.timing(converter.windows(source)):
        for chunk in chunker.chunk(window.document):
            emit(chunk)
        if source.pages:
            emit(Progress(window.pages_done, source.pages))
    for chunk in chunker.close():
        emit(chunk)
    if not chunker.chunks:
        raise InvalidRequest(_NO_TEXT[source.kind is DocumentKind.PDF], reason="DOCUMENT_EMPTY")
    return Finished(
        media_type=source.kind.value,
        pages=source.pages,
        title=source.title,
        warnings=tuple(source.warnings),
        chunks=chunker.chunks,
        tokens=chunker.tokens,
        characters=chunker.characters,
        conversion_us=clock.inside_us,
        chunking_us=clock.outside_us,
        windows=tuple(clock.windows),
    )


_NO_TEXT = {
    True: "The PDF holds no text: scanned pages are pictures of it. Run text recognition over it and send the result.",
    False: "The document holds no text.",
}


def _convert(converter: Converter, order: Order, source: Source) -> Finished:
    started = time.perf_counter()
    window = next(iter(converter.windows(source, whole=True)))
    with open(order.output_path, "w", encoding="utf-8") as file:
        file.write(window.document.model_dump_json(by_alias=True, exclude_none=True))
    return Finished(
        media_type=source.kind.value,
        pages=source.pages,
        title=source.title,
        warnings=tuple(source.warnings),
        conversion_us=(conversion_us := _us(time.perf_counter() - started)),
        windows=((0, conversion_us, conversion_us),),
        schema_version=window.document.version,
        output_bytes=os.path.getsize(order.output_path),
    )


class _Stopwatch:
    """Splits time into what an iterator takes and what is done between its items.

    Attributes:
        windows: see `Finished`; the first MAX_WINDOWS of them.
    """

    def __init__(self) -> None:
        self.inside_us = 0
        self.outside_us = 0
        self.windows: list[tuple[int, int, int]] = []
        self._began = time.perf_counter()

    def timing(self, items: Iterator[Window]) -> Iterator[Window]:
        """The same items."""
        while True:
            started = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.inside_us += _us(time.perf_counter() - started)
            given = time.perf_counter()
            yield item
            done = time.perf_counter()
            self.outside_us += _us(done - given)
            if len(self.windows) < MAX_WINDOWS:
                times = started - self._began, given - self._began, done - self._began
                self.windows.append((_us(times[0]), _us(times[1]), _us(times[2])))


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000)


def _emitter() -> Emit:
    """Writes events to what was stdout; from here on stdout is stderr for everyone else."""
    out: IO[bytes] = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def emit(event: Event) -> None:
        frame = encode_event(event)
        out.write(len(frame).to_bytes(4, "big") + frame)
        out.flush()

    return emit


if __name__ == "__main__":
    raise SystemExit(main())
