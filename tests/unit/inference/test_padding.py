"""Cutting a padded batch."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inference.padding import pad, split
from inference.tokenizing import TokenizedInput


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), parts=st.integers(1, 6), paired=st.booleans())
def test_parts_hold_every_input_in_order(lengths: list[int], parts: int, paired: bool) -> None:
    """Whatever the lengths: no input is lost, and no part is empty or wider than its longest input."""
    inputs = [
        TokenizedInput([number + 1] * length, [number % 2] * length if paired else None)
        for number, length in enumerate(lengths)
    ]
    found = split(pad(inputs), parts)
    assert 1 <= len(found) <= parts
    rows = [
        (ids[:length].tolist(), None if part.type_ids is None else part.type_ids[row][:length].tolist())
        for part in found
        for row, (ids, length) in enumerate(zip(part.ids, part.lengths, strict=True))
    ]
    assert rows == [(list(each.ids), None if each.type_ids is None else list(each.type_ids)) for each in inputs]
    for part in found:
        assert part.ids.shape == part.mask.shape == (len(part.lengths), part.lengths.max())
        assert part.mask.sum(axis=1).tolist() == part.lengths.tolist()


def test_parts_have_similar_numbers_of_tokens() -> None:
    """Long inputs count for more than short ones."""
    inputs = [TokenizedInput([1] * length) for length in (10, 10, 10, 10, 10, 50)]
    assert [int(part.lengths.sum()) for part in split(pad(inputs), 2)] == [50, 50]
    assert np.array_equal(split(pad(inputs), 1)[0].lengths, pad(inputs).lengths)
