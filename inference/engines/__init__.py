"""Who computes: one small protocol, and an engine per way to run a model.

``choice`` measures every engine that this machine can run against the float32 reference and keeps the fastest faithful
one. A further engine is a module with a ``load`` function and a row in ``choice.ENGINES``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inference.padding import PaddedBatch

FloatArray = NDArray[np.float32]


class Head(Enum):
    """What an engine returns for each input."""

    MEAN = "mean"
    CLS = "cls"
    MAX = "max"
    LAST = "lasttoken"
    TOKENS = "tokens"
    LOGITS = "logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTraits:
    """What ``Info`` says about an engine.

    Attributes:
        name: ``amx-bf16``, ``onnxruntime``, ``torch``, …
        precision: ``float32``, ``bfloat16``, …
        device: ``cpu``, ``cuda:0``, …
        export: digest of the export that it computes from, where that differs from the weights by more than rounding.
    """

    name: str
    precision: str
    device: str
    export: str = ""


class Engine(Protocol):
    """Runs one model on one device. Called by one thread at a time."""

    @property
    def traits(self) -> EngineTraits:
        """Name, precision and device."""
        ...

    def run(self, batch: PaddedBatch) -> FloatArray:
        """Compute a batch.

        Returns:
            float32, first axis the inputs in order: (n, dimensions) for a pooling head, (n, length, dimensions) for
            TOKENS (rows of padding hold anything), (n, labels) for LOGITS.

        Raises:
            DeviceOutOfMemory: the batch does not fit; a smaller one may.
        """
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


class DeviceOutOfMemory(Exception):
    """The device's memory did not suffice for this batch."""
