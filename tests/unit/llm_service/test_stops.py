"""Text ends before the first stop string, wherever the pieces are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service.stops import StopCutter

TEXT = "abab, then aabaab and the rest"


def expected(text: str, stops: list[str]) -> str:
    """The text before the first place at which a stop string stands whole."""
    return text[: min([at for stop in stops if (at := text.find(stop)) >= 0], default=len(text))]


@pytest.mark.parametrize("stops", [[], ["aabaab"], ["abac", "rest"], ["ab"], ["nowhere"], ["t"], ["the rest and more"]])
@pytest.mark.parametrize("size", range(1, len(TEXT) + 1))
def test_pieces_of_any_size(stops: list[str], size: int) -> None:
    """Pieces of any size add up to the text before the stop."""
    cutter = StopCutter(stops)
    pieces = [cutter.feed(TEXT[at : at + size]) for at in range(0, len(TEXT), size)]
    assert expected(TEXT, stops) == "".join(pieces) + cutter.rest()


@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=1),
)
def test_any_pieces_and_any_stop(pieces: list[str], stops: list[str]) -> None:
    """However the text is cut, it ends before the stop string's first occurrence."""
    cutter = StopCutter(stops)
    text = "".join(cutter.feed(piece) for piece in pieces) + cutter.rest()
    assert expected("".join(pieces), stops) == text


def test_what_cannot_be_a_stop_passes_at_once() -> None:
    """Only what may still become a stop string is held back."""
    cutter = StopCutter(["END"])
    assert [cutter.feed("one EN")[:4], cutter.feed("x")[:2], cutter.feed("two EN")] == ["one ", "EN", "two "]
