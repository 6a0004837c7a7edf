"""How busy a GPU is while something runs, as NVML sees it, through the reader that the GPU service has."""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gpu_services.gpu.nvml import Nvml

_EVERY_SECONDS = 0.1


@dataclass(slots=True)
class Utilization:
    """Percents that were read, one every tenth of a second."""

    percents: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Their mean; NaN where NVML does not say (as on a MIG slice)."""
        return statistics.fmean(self.percents) if self.percents else math.nan


@contextmanager
def watched(uuid: str) -> Iterator[Utilization]:
    """Watch the GPU of this UUID until the block is left."""
    seen, over = Utilization(), threading.Event()
    reader = Nvml()

    def watch() -> None:
        while not over.wait(_EVERY_SECONDS):
            for device in reader.read().devices:
                if device.uuid.removeprefix("GPU-") == uuid and device.utilization_percent is not None:
                    seen.percents.append(device.utilization_percent)

    thread = threading.Thread(target=watch, name="utilization")
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
        reader.close()
