"""A batch as engines take it: rectangles of ids, with a mask over the padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.tokenizing import TokenizedInput

Int64Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """``n`` inputs padded on the right to the longest, ``length``.

    Attributes:
        ids: int64 (n, length).
        mask: int64 (n, length), 1 where a token is, 0 where padding is.
        type_ids: int64 (n, length); None where the inputs are single texts.
        lengths: int64 (n,), tokens of each input.
    """

    ids: Int64Array
    mask: Int64Array
    type_ids: Int64Array | None
    lengths: Int64Array


def pad(inputs: Sequence[TokenizedInput], *, pad_token_id: int = 0) -> PaddedBatch:
    """Lay ``inputs`` (at least one) into one rectangle."""
    lengths = np.fromiter((each.tokens for each in inputs), dtype=np.int64, count=len(inputs))
    longest = int(lengths.max())
    ids = np.full((len(inputs), longest), pad_token_id, dtype=np.int64)
    paired = inputs[0].type_ids is not None
    type_ids = np.zeros_like(ids) if paired else None
    for row, each in enumerate(inputs):
        ids[row, : each.tokens] = each.ids
        if type_ids is not None and each.type_ids is not None:
            type_ids[row, : each.tokens] = each.type_ids
    mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
    return PaddedBatch(ids=ids, mask=mask, type_ids=type_ids, lengths=lengths)
