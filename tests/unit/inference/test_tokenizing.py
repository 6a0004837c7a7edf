"""Tokenizing: framed, cut and counted exactly, for single texts, ids and pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.testing import SPECIALS, WORDS, write_tokenizer
from inference.tokenizing import TextTokenizer, Truncation, longest_first
from mesh.errors import InvalidRequest, ModelUnusable

CLS, SEP = SPECIALS.index("[CLS]"), SPECIALS.index("[SEP]")
ID = {word: len(SPECIALS) + index for index, word in enumerate(WORDS)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """Reads six tokens, special ones included."""
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path)
    return TextTokenizer.load(path, name="tiny", max_tokens=6)


def test_a_text_is_framed_and_counted(tokenizer: TextTokenizer) -> None:
    """Special tokens surround the text and count as tokens; characters are the text's."""
    found = tokenizer.singles(["the cat", "dog"], Truncation.END)
    assert [tuple(each.ids) for each in found.inputs] == [(CLS, ID["the"], ID["cat"], SEP), (CLS, ID["dog"], SEP)]
    assert (found.tokens, found.characters, found.truncated) == (7, 10, ())


@pytest.mark.parametrize(("side", "kept"), [(Truncation.END, "abcd"), (Truncation.START, "cdef")])
def test_a_long_text_is_cut_at_the_side_asked_for(tokenizer: TextTokenizer, side: Truncation, kept: str) -> None:
    """The cut keeps the frame, and the cut input's position is said."""
    found = tokenizer.singles(["a", "a b c d e f"], side)
    assert tuple(found.inputs[1].ids) == (CLS, *(ID[letter] for letter in kept), SEP)
    assert found.truncated == (1,)


def test_a_long_text_is_refused_when_asked(tokenizer: TextTokenizer) -> None:
    """The refusal names the input in the caller's words."""
    with pytest.raises(InvalidRequest) as caught:
        tokenizer.singles(["a", "a b c d e f"], Truncation.REFUSE)
    assert (caught.value.param, caught.value.reason) == ("input[1]", "INPUT_TOO_LONG")


def test_two_requests_with_different_sides_do_not_disturb_each_other(tokenizer: TextTokenizer) -> None:
    """Truncation is no state of the shared tokenizer."""
    before = tokenizer.singles(["a b c d e f"], Truncation.END)
    tokenizer.singles(["a b c d e f"], Truncation.START)
    assert tokenizer.singles(["a b c d e f"], Truncation.END) == before


def test_ids_are_framed_like_the_text_they_came_from(tokenizer: TextTokenizer) -> None:
    """Sending a text's ids gives what the text gives."""
    text = tokenizer.singles(["the cat"], Truncation.END)
    ids = tokenizer.token_inputs([[ID["the"], ID["cat"]]], Truncation.END)
    assert ids.inputs == text.inputs


@pytest.mark.parametrize("ids", [[-1], [len(SPECIALS) + len(WORDS)], [2**31]])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: TextTokenizer, ids: list[int]) -> None:
    """Another model's ids never become silent nonsense."""
    with pytest.raises(InvalidRequest) as caught:
        tokenizer.token_inputs([[ID["a"]], ids], Truncation.END)
    assert (caught.value.param, caught.value.reason) == ("input[1]", "TOKEN_ID_OUT_OF_RANGE")


def test_a_pair_carries_type_ids(tokenizer: TextTokenizer) -> None:
    """Query and document are told apart by type, the separator after each belonging to it."""
    (pair,) = tokenizer.pairs("cat", ["dog"], Truncation.END).inputs
    assert tuple(pair.ids) == (CLS, ID["cat"], SEP, ID["dog"], SEP)
    assert tuple(pair.type_ids or ()) == (0, 0, 0, 1, 1)


def test_a_long_document_is_cut_before_a_short_query(tokenizer: TextTokenizer) -> None:
    """The query survives; the document is reported as cut."""
    found = tokenizer.pairs("cat", ["a b c d", "a"], Truncation.END)
    assert tuple(found.inputs[0].ids) == (CLS, ID["cat"], SEP, ID["a"], ID["b"], SEP)
    assert found.truncated == (0,)


def test_a_documents_own_limit_is_kept(tokenizer: TextTokenizer) -> None:
    """max_document_tokens cuts a document that would have fitted, at the side asked for."""
    (pair,) = tokenizer.pairs("cat", ["a b"], Truncation.START, max_document_tokens=1).inputs
    assert tuple(pair.ids) == (CLS, ID["cat"], SEP, ID["b"], SEP)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(2, 60))
def test_longest_first_fills_the_room_and_cuts_the_longer(first: int, second: int, room: int) -> None:
    """Never more than there is, never more than fits, no room wasted, and the shorter keeps at least half."""
    kept_first, kept_second = longest_first(first, second, room)
    assert kept_first <= first
    assert kept_second <= second
    assert kept_first + kept_second == min(room, first + second)
    assert min(kept_first, kept_second) >= min(first, second, room // 2)


def test_a_damaged_tokenizer_is_unusable(tmp_path: Path) -> None:
    """A file that is not a tokenizer stops the capability with a reason."""
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelUnusable) as caught:
        TextTokenizer.load(tmp_path, name="tiny", max_tokens=6)
    assert caught.value.reason == "MODEL_TOKENIZER_MISSING"
