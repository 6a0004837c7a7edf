"""What a document tells a trace: its upload, its wait for a process, and what the process did, window by window."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from gpu_services.chunking.events import Finished
from mesh import tracing
from mesh.errors import MeshError
from mesh.tracing import Attributes, Tracer


@dataclass(slots=True)
class Stages:
    """Around the work on one admitted document. The times are set as it goes, on ``time.perf_counter``.

    Attributes:
        started: when it was admitted.
        uploaded: when its last byte was here.
        begun: when a process had it.
        first_chunk: when its first chunk came out.
        found: what the process said at the end.
    """

    started: float
    uploaded: float = 0.0
    begun: float = 0.0
    first_chunk: float = 0.0
    found: Finished | None = None
    _above: str = field(default_factory=tracing.present)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._above and (tracer := tracing.active) is not None:
            failure = error.reason if isinstance(error, MeshError) else type(error).__name__
            # Who leaves early has not failed.
            self._tell(tracer, failure if isinstance(error, Exception) else "")

    def _tell(self, tracer: Tracer, error: str) -> None:
        now, now_ns = time.perf_counter(), time.time_ns()

        def at(moment: float) -> int:
            return now_ns - int((now - moment) * 1e9)

        uploaded, begun = self.uploaded or now, self.begun or now
        tracer.begin("upload", parent=self._above, unix_ns=at(self.started)).end(unix_ns=at(uploaded))
        waited_in_vain = error if not self.begun else ""
        tracer.begin("queue", parent=self._above, unix_ns=at(uploaded)).end(error=waited_in_vain, unix_ns=at(begun))
        if not self.begun:
            return
        document = tracer.begin("document", parent=self._above, attributes=self._attributes(), unix_ns=at(begun))
        if self.found is not None:
            for window in self.found.windows:
                # Bounded here: the process that said it has read whatever a stranger sent.
                offsets = (min(max(0, offset), int((now - begun) * 1e6)) for offset in window)
                opened, converted, chunked = (at(begun + offset / 1e6) for offset in offsets)
                tracer.begin("conversion", parent=document.traceparent, unix_ns=opened).end(unix_ns=converted)
                if chunked > converted:
                    tracer.begin("chunking", parent=document.traceparent, unix_ns=converted).end(unix_ns=chunked)
        document.end(error=error, unix_ns=now_ns)

    def _attributes(self) -> Attributes:
        attributes: dict[str, tracing.Value] = {}
        if self.first_chunk:
            attributes["mesh.document.first_chunk_seconds"] = self.first_chunk - self.begun
        if (found := self.found) is not None:
            attributes.update(
                {
                    "mesh.document.media_type": found.media_type,
                    "mesh.document.pages": found.pages,
                    "mesh.document.chunks": found.chunks,
                    "mesh.document.tokens": found.tokens,
                    "mesh.document.conversion_seconds": found.conversion_us / 1e6,
                    "mesh.document.chunking_seconds": found.chunking_us / 1e6,
                }
            )
        return attributes
