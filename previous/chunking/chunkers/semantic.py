"""Cuts a text where its subject changes, as an embedding model sees it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from inference.card import ModelKind
from inference.engines import FloatArray
from inference.models import DEFAULT_EMBEDDING_MODEL, ModelRequest, resolve
from mesh.docling.chunks import Chunk
from mesh.docling.tokens import TokenCounter, counter_for
from mesh.errors import InvalidRequest
from previous.torch_models import AUTO

_PARAGRAPHS = re.compile(r"\n\s*\n")
_SENTENCES = re.compile(r"(?<=[.!?。！？])\s+")
_DELIMITER = "\n"
_SAME_SUBJECT = 0.15
"""Least cosine between a sentence and what the chunk says so far. Sentences of one subject rarely have less."""


class Embedder(Protocol):
    """Turns sentences into vectors."""

    def generate_embeddings(self, texts: Sequence[str]) -> FloatArray:
        """See EmbeddingService."""
        ...


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text that stays together. ``begins`` tells that its subject is another than that of the text before it."""

    text: str
    begins: bool = False


class SemanticSplitterChunker:
    """Chunks of a text: whole paragraphs, cut further where the subject changes or the model could read no more.

    >>> SemanticSplitterChunker(gpu_semantic_checks=True).chunk("A text.")[0].text  # doctest: +SKIP
    'A text.'

    Args:
        gpu_semantic_checks: whether sentences are embedded to find changes of subject, on a GPU where there is one.
            Without, only paragraphs and lengths count, as in the mesh, and torch is not needed.
        model_name: the model that reads the chunks, a directory or a hub name. Its tokens are counted.
        max_tokens: longest chunk, special tokens included; None means what the model reads.
        embedder: in place of the model, which is then not loaded.

    Raises:
        ModelUnusable: the model is missing, damaged or of the wrong kind.
        InvalidRequest: ``max_tokens`` is more than the model reads, or less than 16.
    """

    def __init__(
        self,
        *,
        gpu_semantic_checks: bool = False,
        model_name: str = DEFAULT_EMBEDDING_MODEL,
        max_tokens: int | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        model = resolve(ModelRequest(name=model_name, kind=ModelKind.EMBEDDING, setting="model_name"))
        longest = model.card.max_input_tokens
        if max_tokens is not None and not 16 <= max_tokens <= longest:
            raise InvalidRequest(f"max_tokens must be from 16 to {longest}; it is {max_tokens}.", param="max_tokens")
        self._counter: TokenCounter = counter_for(str(model.path / "tokenizer.json"))
        self._budget = (max_tokens or longest) - self._counter.special_tokens
        self._embedder = (embedder or _embedding_service(model_name)) if gpu_semantic_checks else None

    def chunk(self, text: str) -> list[Chunk]:
        """The chunks of a text in reading order. Blank lines part paragraphs."""
        paragraphs = [" ".join(each.split()) for each in _PARAGRAPHS.split(text)]
        pieces = self._pieces([_SENTENCES.split(each) for each in paragraphs if each])
        return [self._finished(index, text) for index, text in enumerate(self._merged(self._fitting(pieces)))]

    def _pieces(self, paragraphs: list[list[str]]) -> Iterator[_Piece]:
        """Paragraphs, cut where the subject changes."""
        begins = iter(self._changes([sentence for sentences in paragraphs for sentence in sentences]))
        for sentences in paragraphs:
            first, *marks = [next(begins) for _ in sentences]
            run = [sentences[0]]
            for sentence, changes in zip(sentences[1:], marks, strict=True):
                if changes:
                    yield _Piece(" ".join(run), first)
                    run, first = [], True
                run.append(sentence)
            yield _Piece(" ".join(run), first)

    def _changes(self, sentences: list[str]) -> list[bool]:
        """For each sentence, whether its subject is another than that of the sentences before it."""
        changes = [False] * len(sentences)
        if self._embedder is None or not sentences:
            return changes
        vectors = self._embedder.generate_embeddings(sentences)
        said = vectors[0].copy()
        for position, vector in enumerate(vectors[1:], start=1):
            changes[position] = float(said @ vector) < _SAME_SUBJECT * float(np.linalg.norm(said))
            said = vector.copy() if changes[position] else said + vector
        return changes

    def _fitting(self, pieces: Iterable[_Piece]) -> Iterator[_Piece]:
        """Pieces within the budget: a longer one is cut at the most meaningful places, as the mesh cuts it."""
        for piece in pieces:
            if self._counter.budget_tokens(piece.text) <= self._budget:
                yield piece
                continue
            import semchunk

            cut = semchunk.chunkerify(self._counter.budget_tokens, chunk_size=self._budget, memoize=False)
            for position, part in enumerate(cut(piece.text)):
                yield _Piece(part, piece.begins and position == 0)

    def _merged(self, pieces: Iterable[_Piece]) -> Iterator[str]:
        """Texts of chunks: neighbours of one subject stand together as long as they fit."""
        text = ""
        for piece in pieces:
            together = text + _DELIMITER + piece.text if text else piece.text
            if text and (piece.begins or self._counter.budget_tokens(together) > self._budget):
                yield text
                together = piece.text
            text = together
        if text:
            yield text

    def _finished(self, index: int, text: str) -> Chunk:
        return Chunk(index=index, text=text, tokens=self._counter.embedded_tokens(text), contextualized_text=text)


def _embedding_service(model_name: str) -> Embedder:
    from previous.services.embedding import EmbeddingService

    return EmbeddingService(model_name, device=AUTO)
