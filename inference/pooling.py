"""From token states to one vector, in numpy: what engines without a pooling layer of their own share."""

from __future__ import annotations

import numpy as np

from inference.engines import FloatArray, Head
from inference.padding import PaddedBatch


def pooled(states: FloatArray, batch: PaddedBatch, head: Head) -> FloatArray:
    """Apply a pooling head.

    Args:
        states: float32 (n, length, dimensions).
        batch: the batch they were computed from.
        head: MEAN, CLS, MAX or LAST; TOKENS returns the states as they are.

    Returns:
        float32 (n, dimensions), not normalised.
    """
    if head is Head.TOKENS:
        return states
    if head is Head.CLS:
        return np.ascontiguousarray(states[:, 0])
    if head is Head.LAST:
        return np.ascontiguousarray(states[np.arange(len(states)), batch.lengths - 1])
    mask = batch.mask.astype(np.float32)
    if head is Head.MAX:
        largest: FloatArray = np.where(mask[:, :, None] > 0, states, np.float32(-np.inf)).max(axis=1)
        return largest
    # One matrix product per input instead of a masked copy of all states.
    mean: FloatArray = np.matmul(mask[:, None, :], states)[:, 0] / batch.lengths[:, None].astype(np.float32)
    return mean


def normalized(vectors: FloatArray) -> FloatArray:
    """Scale the last axis to length 1; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: FloatArray = vectors / np.maximum(lengths, np.float32(1e-12))
    return scaled
