"""Padding and pooling: right whatever the lengths."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from inference.engines import Head
from inference.padding import pad
from inference.pooling import normalized, pooled
from inference.tokenizing import TokenizedInput


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=6), st.integers(0, 3))
def test_pooling_sees_no_padding(inputs: list[list[int]], pad_id: int) -> None:
    """Each input's vector is what it would be alone."""
    batch = pad([TokenizedInput(ids) for ids in inputs], pad_token_id=pad_id)
    states = np.random.default_rng(0).normal(size=(*batch.ids.shape, 4)).astype(np.float32)
    alone = [states[row, : len(ids)] for row, ids in enumerate(inputs)]
    np.testing.assert_allclose(
        pooled(states, batch, Head.MEAN), [each.mean(axis=0) for each in alone], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(pooled(states, batch, Head.MAX), [each.max(axis=0) for each in alone])
    np.testing.assert_array_equal(pooled(states, batch, Head.CLS), [each[0] for each in alone])
    np.testing.assert_array_equal(pooled(states, batch, Head.LAST), [each[-1] for each in alone])


def test_a_batch_is_padded_on_the_right_with_the_models_own_padding() -> None:
    """Ids, mask, types and lengths agree."""
    batch = pad([TokenizedInput((5, 6, 7), (0, 1, 1)), TokenizedInput((8,), (0,))], pad_token_id=3)
    assert batch.ids.tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.type_ids is not None
    assert batch.type_ids.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert batch.lengths.tolist() == [3, 1]


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32)))
def test_normalised_vectors_have_length_one(vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> None:
    """All but the zero vector, which stays zero instead of becoming NaN."""
    lengths = np.linalg.norm(normalized(vectors), axis=1)
    for length, original in zip(lengths, np.linalg.norm(vectors, axis=1), strict=True):
        assert length == 0 or original < 1e-9 or abs(length - 1) < 1e-4
