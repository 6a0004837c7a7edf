"""Our ``POST /v1/chunk``: a document in, its chunks out, whole or as pages are done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field, ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.answers import json_answer
from gateway.api import Api, Operation
from gateway.bodies import OwnBody, explain, read_json
from gateway.catalogue import Catalogue
from gateway.exchange import Exchange
from gateway.peers import Chunker
from gateway.settings import GatewaySettings
from gateway.streaming import LINES, live
from gateway.uploads import DocumentUpload, plain_filename
from mesh.clients.chunking import Chunk, ChunkEvent, ChunkFinish, ChunkOptions, ChunkProgress, ChunkTimings
from mesh.errors import Cancelled, InvalidBody, InvalidRequest, MeshError, Unavailable, WrongState

if TYPE_CHECKING:
    from gateway.url_sources.fetching import UrlSource

_CHUNKERS = Literal["docling", "docling-hybrid", "docling-hierarchical"]


class _HowToCut(OwnBody):
    """What both forms of the request may say."""

    chunker: _CHUNKERS | None = Field(None, description="docling-hybrid or docling-hierarchical")
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="longest chunk, in the tokenizer's tokens"
    )
    tokenizer: Annotated[str, Field(max_length=512)] = Field(
        "", description="the served embedding model whose tokens are counted"
    )


class UploadFields(_HowToCut):
    """The form fields of an upload."""

    media_type: Annotated[str, Field(max_length=256)] = Field("", description="overrides the file part's own type")


class ChunkRequest(_HowToCut):
    """A document as text, or by its URL where that is turned on; upload anything else as multipart/form-data."""

    text: str | None = Field(None, description="the document")
    url: Annotated[str, Field(max_length=8192)] | None = Field(
        None, description="where the document is; only where gateway.url_sources.enabled is set"
    )
    filename: Annotated[str, Field(max_length=255)] = Field("", description="its ending names the type")
    media_type: Annotated[str, Field(max_length=256)] = Field(
        "", description="text/plain (the default), text/markdown, text/html; of a URL, instead of what its server says"
    )


class _Incoming(Protocol):
    """A document that is still coming. ``failure`` is what ended it early."""

    failure: MeshError | None


_CHUNK_EXAMPLE = {
    "index": 0,
    "text": "A circuit breaker stops calls to a peer that fails.",
    "headings": ["The hop"],
    "pages": [1],
    "tokens": 12,
    "bbox": [{"page": 1, "left": 72.0, "top": 96.5, "right": 523.3, "bottom": 110.2}],
    "contextualized_text": "The hop\nA circuit breaker stops calls to a peer that fails.",
}
OPERATION = Operation(
    method="POST",
    path="/v1/chunk",
    tag="Mesh",
    summary="Cut a document into chunks",
    description=(
        "PDF, DOCX, PPTX, XLSX, HTML, Markdown or plain text, as a `multipart/form-data` upload with a part named "
        "`file` and the options as fields **before** it, or text as JSON; or by its `url`, where the operator has "
        "turned that on. With `Accept: application/x-ndjson` the "
        'answer is a stream: lines `{"chunk": …}` and `{"progress": …}` as pages are done, and as the last line '
        '`{"document": …, "usage": …}`. A stream without that line is broken and ends with `{"error": …}`.'
    ),
    body=ChunkRequest,
    examples={"Markdown": {"text": "# The hop\n\nA circuit breaker stops calls.", "media_type": "text/markdown"}},
    answer={
        "chunks": [_CHUNK_EXAMPLE],
        "document": {"filename": "mesh.md", "media_type": "text/markdown", "pages": 0, "title": "The hop"},
        "usage": {"chunks": 1, "tokens": 12, "characters": 51},
    },
)


@dataclass(frozen=True, slots=True)
class ChunkRoute:
    """Answers chunking requests."""

    chunker: Chunker
    catalogue: Catalogue
    settings: GatewaySettings
    urls: UrlSource | None = None
    """What fetches documents; None where that is off."""

    def mount(self, api: Api) -> None:
        """Serve it, with the upload's form beside the JSON body in the document."""
        api.mount(OPERATION, self.create, hop=self.chunker.hop)

    async def create(self, request: Request) -> Response:
        """The document's chunks."""
        if not self.settings.chunking.chunkers.docling.enabled:
            raise WrongState("Chunking is turned off here (gateway.chunking.chunkers.docling.enabled).", hop="chunking")
        exchange = Exchange.of(request)
        media_type = request.headers.get("content-type", "")
        if media_type.lower().startswith("multipart/form-data"):
            upload = DocumentUpload(_received(request), media_type, frozenset(UploadFields.model_fields))
            await upload.open()
            fields = _fields_of(upload)
            options = self._options(fields, upload.filename, fields.media_type or upload.media_type, None)
            events = self._events(exchange, upload.frames(), options, upload)
        else:
            body = await read_json(request, ChunkRequest)
            events = self._fetched(exchange, body) if body.url is not None else self._told(exchange, body)
        if "application/x-ndjson" in request.headers.get("accept", "").lower():
            return await live(_lines(events), LINES, exchange=exchange, settings=self.settings.streams)
        return await _collected(events)

    def _told(self, exchange: Exchange, body: ChunkRequest) -> AsyncGenerator[ChunkEvent, None]:
        """The events of a document that the request holds."""
        if body.text is None:
            raise InvalidBody("text: send the document's text, or upload the document.", param="text")
        if not body.text.strip():
            raise InvalidRequest("text is empty; send the document's text.", param="text", reason="EMPTY_INPUT")
        document = body.text.encode()
        name = plain_filename(body.filename)
        type_given = body.media_type or ("" if name else "text/plain")
        return self._events(exchange, document, self._options(body, name, type_given, len(document)), None)

    async def _fetched(self, exchange: Exchange, body: ChunkRequest) -> AsyncGenerator[ChunkEvent, None]:
        """The events of a document that the request names by its URL."""
        if body.text is not None:
            raise InvalidBody("Send text or url, not both.", param="url")
        if self.urls is None:
            raise WrongState(
                "Documents are not fetched from URLs here (gateway.url_sources.enabled); upload the document.",
                param="url",
                reason="URL_SOURCES_OFF",
            )
        deadline = exchange.deadline(self.settings.timeouts.chunking_seconds, streamed=True)
        async with self.urls.open(body.url or "", deadline) as remote:
            exchange.note(url_host=remote.host)
            name = plain_filename(body.filename) or remote.filename
            options = self._options(body, name, body.media_type or remote.media_type, None)
            async with aclosing(self._events(exchange, remote.frames(), options, remote)) as events:
                async for event in events:
                    yield event

    def _options(self, asked: _HowToCut, filename: str, media_type: str, size: int | None) -> ChunkOptions:
        chunker = asked.chunker or self.settings.chunking.default_chunker
        return ChunkOptions(
            filename=filename,
            media_type=media_type,
            chunker="docling-hybrid" if chunker == "docling" else chunker,
            max_tokens=asked.max_tokens,
            tokenizer=self.catalogue.resolve(asked.tokenizer),
            size_bytes=size,
        )

    async def _events(
        self,
        exchange: Exchange,
        document: bytes | AsyncIterable[bytes],
        options: ChunkOptions,
        source: _Incoming | None,
    ) -> AsyncGenerator[ChunkEvent, None]:
        """The worker's events; where the document's coming broke off, that error instead of the worker's view of it."""
        exchange.note(chunker=options.chunker)
        deadline = exchange.deadline(self.settings.timeouts.chunking_seconds, streamed=True)
        answers: Any = self.chunker.chunk(document, options, deadline=deadline)
        try:
            async with aclosing(answers) as opened:
                async for event in opened:
                    if isinstance(event, ChunkFinish):
                        exchange.timed(**_timings_ms(event.timings))
                        exchange.note(
                            chunks=event.usage.chunks, pages=event.document.pages, bytes=event.document.size_bytes
                        )
                    yield event
        except (MeshError, asyncio.CancelledError):
            if source is not None and source.failure is not None:
                raise source.failure from None
            raise


async def _received(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            if piece:
                yield piece
    except ClientDisconnect:
        raise Cancelled("The client went away while it was uploading.") from None


def _fields_of(upload: DocumentUpload) -> UploadFields:
    try:
        # Form fields are text by nature, so numbers may be written as such.
        return UploadFields.model_validate(upload.fields, strict=False)
    except ValidationError as error:
        raise explain(error, UploadFields) from None


async def _collected(events: AsyncGenerator[ChunkEvent, None]) -> Response:
    chunks: list[dict[str, Any]] = []
    async with aclosing(events):
        async for event in events:
            match event:
                case Chunk():
                    chunks.append(asdict(event))
                case ChunkFinish():
                    return json_answer({"chunks": chunks, **_finish(event)})
    raise Unavailable("The chunks ended before they were whole.", hop="chunking", reason="BROKEN_STREAM")


async def _lines(events: AsyncGenerator[ChunkEvent, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        async for event in events:
            match event:
                case Chunk():
                    yield _line({"chunk": asdict(event)})
                case ChunkProgress():
                    yield _line({"progress": asdict(event)})
                case ChunkFinish():
                    yield _line(_finish(event))


def _line(payload: dict[str, Any]) -> bytes:
    return to_json(payload) + b"\n"


def _finish(event: ChunkFinish) -> dict[str, Any]:
    return {"document": asdict(event.document), "usage": asdict(event.usage)}


def _timings_ms(timings: ChunkTimings) -> dict[str, float]:
    return {
        "worker": timings.total_us / 1000,
        "queue": timings.queue_us / 1000,
        "conversion": timings.conversion_us / 1000,
        "chunking": timings.chunking_us / 1000,
    }
