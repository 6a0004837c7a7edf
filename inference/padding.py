"""A batch as engines take it: rectangles of ids, with a mask over the padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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


def split(batch: PaddedBatch, parts: int) -> list[PaddedBatch]:
    """Cut a batch between inputs into at most ``parts`` of similar numbers of tokens, each as long as it has to be."""
    ends = np.cumsum(batch.lengths)
    goals = [int(ends[-1]) * part / parts for part in range(1, parts)]
    cuts = [0, *(int(np.searchsorted(ends, goal)) + 1 for goal in goals), len(ends)]
    return [_rows(batch, start, end) for start, end in pairwise(cuts) if start < end]


def _rows(batch: PaddedBatch, start: int, end: int) -> PaddedBatch:
    lengths = batch.lengths[start:end]
    longest = int(lengths.max())
    return PaddedBatch(
        ids=batch.ids[start:end, :longest],
        mask=batch.mask[start:end, :longest],
        type_ids=None if batch.type_ids is None else batch.type_ids[start:end, :longest],
        lengths=lengths,
    )
