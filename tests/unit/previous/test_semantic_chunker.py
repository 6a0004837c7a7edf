"""Where the chunker of before cuts, with vectors that are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from inference.engines import FloatArray
from inference.testing import write_model
from mesh.errors import InvalidRequest
from previous.chunking.chunkers.semantic import SemanticSplitterChunker


class BySubject:
    """An embedder whose vectors tell whether a sentence speaks of cats, of dogs, or of neither."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def generate_embeddings(self, texts: Sequence[str]) -> FloatArray:
        """One of three axes for each text."""
        self.seen.extend(texts)
        subject = [0 if "cat" in text else 1 if "dog" in text else 2 for text in texts]
        vectors: FloatArray = np.eye(3, dtype=np.float32)[subject]
        return vectors


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A model that reads 32 tokens and whose every word is one."""
    return str(write_model(tmp_path / "model", max_position_embeddings=32))


def chunks(chunker: SemanticSplitterChunker, text: str) -> list[str]:
    """The texts of the chunks."""
    return [chunk.text for chunk in chunker.chunk(text)]


def test_it_cuts_where_the_subject_changes(model: str) -> None:
    """Inside a paragraph and between two of them alike; one subject over two paragraphs stays together."""
    chunker = SemanticSplitterChunker(gpu_semantic_checks=True, model_name=model, embedder=BySubject())
    text = "the cat sat. a cat ran. the dog sat.\n\na dog ran far.\n\nthe mat. a mat."
    assert chunks(chunker, text) == ["the cat sat. a cat ran.", "the dog sat.\na dog ran far.", "the mat. a mat."]


def test_without_checks_only_paragraphs_and_lengths_count(model: str) -> None:
    """Nothing is embedded, whole paragraphs fill a chunk, and the next begins where the budget ends."""
    embedder = BySubject()
    chunker = SemanticSplitterChunker(model_name=model, max_tokens=16, embedder=embedder)
    text = "the cat sat on the mat\n\nthe dog ran far away\n\nthe cat ran far away"
    assert chunks(chunker, text) == ["the cat sat on the mat\nthe dog ran far away", "the cat ran far away"]
    assert embedder.seen == []


def test_chunks_tell_their_place_and_their_length(model: str) -> None:
    """Indices count on; tokens are those that the model reads, its two special ones included."""
    found = SemanticSplitterChunker(model_name=model, max_tokens=16).chunk("a b c d e f g h\n\na b c d e f g h i")
    assert [(chunk.index, chunk.tokens) for chunk in found] == [(0, 10), (1, 11)]
    assert [chunk.contextualized_text for chunk in found] == [chunk.text for chunk in found]


@pytest.mark.parametrize("text", ["", " \n\n \n"])
def test_a_text_of_nothing_has_no_chunks(model: str, text: str) -> None:
    """Neither an error nor an empty chunk."""
    chunker = SemanticSplitterChunker(gpu_semantic_checks=True, model_name=model, embedder=BySubject())
    assert chunker.chunk(text) == []


@pytest.mark.parametrize("max_tokens", [15, 33])
def test_a_budget_that_cannot_be_is_refused(model: str, max_tokens: int) -> None:
    """Shorter than anything of use, or longer than the model reads."""
    with pytest.raises(InvalidRequest, match="from 16 to 32"):
        SemanticSplitterChunker(model_name=model, max_tokens=max_tokens)
