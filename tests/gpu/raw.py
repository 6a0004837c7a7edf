"""The model by itself: batches made ready beforehand, then forward passes alone. No server can be faster than that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.padding import PaddedBatch, pad
from inference.tokenizing import TokenizedInput

BUDGETS = (4096, 16384, 65536, 262144)
"""Tokens of a batch, padding included; the best of them counts."""


@dataclass(frozen=True, slots=True)
class RawModel:
    """A transformers encoder in half precision.

    Args:
        path: its directory.
        dtype: torch's.
        device: where it runs.
    """

    module: Any
    device: str

    @classmethod
    def load(cls, path: Path, *, precision: str, device: str) -> RawModel:
        """Load it with fused attention."""
        import torch
        from transformers import AutoModel

        dtype = getattr(torch, precision)
        module = AutoModel.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
        return cls(module.eval().to(device), device)

    def texts_per_second(self, inputs: Sequence[TokenizedInput], *, seconds: float) -> float:
        """Its best speed over all batch sizes, each for about so long."""
        return max(self._speed(batches(inputs, budget), len(inputs), seconds) for budget in BUDGETS)

    def _speed(self, ready: Sequence[PaddedBatch], texts: int, seconds: float) -> float:
        for batch in ready:
            self.run(batch)
        began, rounds = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for batch in ready:
                self.run(batch)
            rounds += 1
        return rounds * texts / (time.perf_counter() - began)

    def run(self, batch: PaddedBatch) -> Any:
        """Mean-pooled vectors, on the host: copying them waits for the device."""
        import torch

        with torch.inference_mode():
            ids = torch.from_numpy(batch.ids).to(self.device, non_blocking=True)
            mask = torch.from_numpy(batch.mask).to(self.device, non_blocking=True)
            states = self.module(input_ids=ids, attention_mask=mask).last_hidden_state
            return ((states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).cpu()


def batches(inputs: Sequence[TokenizedInput], budget: int) -> list[PaddedBatch]:
    """The inputs sorted by length, as many to a batch as the budget holds."""
    found: list[PaddedBatch] = []
    batch: list[TokenizedInput] = []
    for each in sorted(inputs, key=lambda one: one.tokens):
        if batch and (len(batch) + 1) * each.tokens > budget:
            found.append(pad(batch))
            batch = []
        batch.append(each)
    return [*found, pad(batch)]
