"""OpenAI's token ids become text again, or are refused."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.vocabulary import CL100K_BASE, OpenAIVocabulary, VocabularyFile
from mesh.errors import InvalidRequest

PIECES = [bytes([value]) for value in range(256)] + [b"he", b"llo", "é".encode(), b" wor", b"ld"]
DATA = b"".join(base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(PIECES))
FILE = VocabularyFile("tiny", "https://example.test/tiny", hashlib.sha256(DATA).hexdigest(), ((300, "<|endoftext|>"),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the small vocabulary, under the name by which tiktoken would cache it."""
    (tmp_path / FILE.file_names[1]).write_bytes(DATA)
    return tmp_path


async def test_ids_become_text(folder: Path) -> None:
    """Ordinary and special ids alike, found under tiktoken's cached name."""
    assert await OpenAIVocabulary(FILE, folder).decode([[256, 257], [300]], param="input") == ["hello", "<|endoftext|>"]


async def test_the_file_is_also_found_under_its_own_name(tmp_path: Path) -> None:
    """An operator may copy it without knowing tiktoken's cache."""
    (tmp_path / "tiny.tiktoken").write_bytes(DATA)
    assert await OpenAIVocabulary(FILE, tmp_path).decode([[256]], param="input") == ["he"]


@given(ids=st.lists(st.integers(0, len(PIECES) - 1)))
def test_any_ids_decode_to_their_bytes(ids: list[int]) -> None:
    """Also where the ids cut a character in two: what is no UTF-8 becomes U+FFFD."""
    expected = b"".join(PIECES[token] for token in ids).decode("utf-8", "replace")
    assert OpenAIVocabulary(FILE, None)._parse(DATA).decode(ids) == expected


async def test_an_id_that_is_not_there_is_named(folder: Path) -> None:
    """The refusal says which id."""
    with pytest.raises(InvalidRequest, match="261") as caught:
        await OpenAIVocabulary(FILE, folder).decode([[1], [261]], param="input")
    assert caught.value.reason == "UNKNOWN_TOKEN_ID"


async def test_without_the_file_ids_are_refused(tmp_path: Path) -> None:
    """The refusal says where the file would go; nothing is downloaded."""
    for folder in (None, tmp_path):
        with pytest.raises(InvalidRequest, match="GATEWAY_VOCABULARY__DIRECTORY") as caught:
            await OpenAIVocabulary(CL100K_BASE, folder).decode([[1]], param="input")
        assert caught.value.reason == "VOCABULARY_UNAVAILABLE"


async def test_a_damaged_file_is_not_believed(folder: Path) -> None:
    """A wrong vocabulary would turn every text into another one."""
    (folder / FILE.file_names[1]).write_bytes(DATA[:-9])
    with pytest.raises(InvalidRequest, match="damaged"):
        await OpenAIVocabulary(FILE, folder).decode([[1]], param="input")


def test_the_published_name_is_tiktokens_cache_key() -> None:
    """A TIKTOKEN_CACHE_DIR that was filled elsewhere can be used as it is."""
    assert CL100K_BASE.file_names[1] == "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
