"""The state of the machine's GPUs, read in the caller's own process."""

from __future__ import annotations

import threading

from gpu_services.gpu.nvml import GpuSource, Nvml
from gpu_services.gpu.status import Status


class GPUManager:
    """Reads GPUs by the code that the mesh's GPU service reads them with.

    >>> GPUManager().get_gpu_status().unavailable_reason  # doctest: +SKIP
    "GPUs cannot be read: NVIDIA's driver library (NVML) is not installed."

    A driver that hangs holds the caller: that is what the service of its own mended.
    """

    def __init__(self, source: GpuSource | None = None) -> None:
        self._source = source or Nvml()
        self._one_at_a_time = threading.Lock()

    def get_gpu_status(self) -> Status:
        """The state now; no devices means that ``unavailable_reason`` says why. It never raises."""
        with self._one_at_a_time:
            return self._source.read()
