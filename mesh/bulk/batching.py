"""Lines into requests: as large as streams well, never larger than the worker takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mesh.bulk.failures import BadLine
from mesh.bulk.reading import Document, Place, Reader

UNANSWERED_PER_STREAM = 8
"""Requests of one stream that wait for their answer: as many as a worker computes side by side of one stream, unless it
is told otherwise."""
STREAMS_PER_ENDPOINT = 2
"""While one stream ends and begins anew, the other keeps the worker busy."""

_MOST_TEXTS = 256
_SPECIAL_TOKENS = 64
"""What a model's special tokens and its prompt may add to a text."""
_QUEUE_SHARE = 0.25
"""Of the worker's queue. More would keep other bulk work out and the worker no busier."""
_UNTOLD_QUEUED_TOKENS = 600_000
_UNTOLD_REQUEST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """What one request may hold.

    Attributes:
        texts: at most.
        tokens: at most, however dense the text. A single longer text is a request of its own.
        bytes: of UTF-8, at most; a text that is longer by itself cannot be sent.
        text_tokens: most that the model reads of one text.
    """

    texts: int
    tokens: int
    bytes: int
    text_tokens: int

    @classmethod
    def of_worker(
        cls, *, inputs: int, request_tokens: int, request_bytes: int, queued_tokens: int, text_tokens: int
    ) -> BatchLimits:
        """From what a worker's Info states; 0 where it states nothing."""
        share = (queued_tokens or _UNTOLD_QUEUED_TOKENS) * _QUEUE_SHARE
        tokens = int(share / (UNANSWERED_PER_STREAM * STREAMS_PER_ENDPOINT))
        return cls(
            texts=min(inputs or _MOST_TEXTS, _MOST_TEXTS),
            tokens=max(1, min(tokens, request_tokens or tokens)),
            # The rest of the message, and each text's own frame, take room too.
            bytes=(request_bytes or _UNTOLD_REQUEST_BYTES) // 2,
            text_tokens=text_tokens or tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Consecutive documents of the input, for one request.

    Attributes:
        number: among all batches of this run, from 0.
        documents: may be none, where only bad lines are left.
        place: how far the input has been read with them.
        skipped: bad lines left out since the batch before.
    """

    number: int
    documents: tuple[Document, ...]
    place: Place
    skipped: int = 0

    @property
    def texts(self) -> list[str]:
        """In order."""
        return [document.text for document in self.documents]


def batches(reader: Reader, limits: BatchLimits, *, skip: Callable[[BadLine], None] | None) -> Iterator[Batch]:
    """The rest of the input as batches.

    Args:
        reader: the input.
        limits: of one batch.
        skip: told of each bad line, which is then left out; None stops at the first.

    Raises:
        BadLine: after the documents before it were given.
    """
    filling = _Filling(limits, reader.place)
    for each in reader.documents():
        found = each if isinstance(each, BadLine) else filling.sendable(each)
        if isinstance(found, Document):
            if not filling.has_room(found):
                yield filling.take()
            filling.add(found)
        else:
            if skip is None:
                if filling.documents:
                    yield filling.take()
                raise found
            skip(found)
            filling.skipped += 1
        filling.place = reader.place
    if filling.documents or filling.skipped:
        yield filling.take()


@dataclass(slots=True)
class _Filling:
    """The batch that is being filled."""

    limits: BatchLimits
    place: Place
    documents: list[Document] = field(default_factory=list)
    skipped: int = 0
    number: int = 0
    tokens: int = 0
    bytes: int = 0

    def sendable(self, document: Document) -> Document | BadLine:
        """The document, or why it cannot be sent at all."""
        if document.size <= self.limits.bytes:
            return document
        why = f"its text has {document.size:,} bytes, and the worker takes {self.limits.bytes:,}"
        return BadLine(document.line, why)

    def has_room(self, document: Document) -> bool:
        return not self.documents or (
            len(self.documents) < self.limits.texts
            and self.tokens + self._most_tokens(document) <= self.limits.tokens
            and self.bytes + document.size <= self.limits.bytes
        )

    def add(self, document: Document) -> None:
        self.documents.append(document)
        self.tokens += self._most_tokens(document)
        self.bytes += document.size

    def take(self) -> Batch:
        taken = Batch(number=self.number, documents=tuple(self.documents), place=self.place, skipped=self.skipped)
        self.documents = []
        self.number += 1
        self.skipped = self.tokens = self.bytes = 0
        return taken

    def _most_tokens(self, document: Document) -> int:
        """No tokenizer makes more tokens of a text than it has bytes."""
        return min(document.size + _SPECIAL_TOKENS, self.limits.text_tokens)
