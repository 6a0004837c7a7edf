"""Reads GPUs through NVML, the library of NVIDIA's driver.

Every figure is asked for by itself: what a device does not offer costs that figure and a warning, not the answer.
"""

# ruff: noqa: N815 - NVIDIA's names
from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from gpu_services.gpu.status import Device, Mig, MigInstance, Process, Status

T = TypeVar("T")

_TEMPERATURE_GPU = 0
_CLOCK_SM = 1
_UNCORRECTED, _SINCE_DRIVER_LOAD = 1, 0

_NOT_SUPPORTED, _NOT_FOUND = 3, 6
_DRIVER_GONE = {1, 9, 12, 15, 16, 18, 999}
"""Uninitialized, driver not loaded, library not found, GPU lost, reset required, driver and library disagree, unknown:
after these NVML has to be opened again."""

_REASONS = {
    9: "the NVIDIA driver is not loaded",
    12: "NVIDIA's driver library (NVML) is not installed",
    15: "the GPU has fallen off the bus",
    16: "the GPU needs a reset",
    18: "the NVIDIA driver and its library have different versions; restart the machine or the container",
}


class NvmlLibrary(Protocol):
    """The part of the module `pynvml` that is used: functions that raise NVMLError with a code in `value`."""

    NVMLError: type[Exception]
    nvmlInit: Callable[[], object]
    nvmlShutdown: Callable[[], object]
    nvmlSystemGetDriverVersion: Callable[[], str]
    nvmlSystemGetNVMLVersion: Callable[[], str]
    nvmlSystemGetCudaDriverVersion: Callable[[], int]
    nvmlSystemGetProcessName: Callable[[int], str]
    nvmlDeviceGetCount: Callable[[], int]
    nvmlDeviceGetHandleByIndex: Callable[[int], Any]
    nvmlDeviceGetName: Callable[[Any], str]
    nvmlDeviceGetUUID: Callable[[Any], str]
    nvmlDeviceGetPciInfo: Callable[[Any], Any]
    nvmlDeviceGetMemoryInfo: Callable[[Any], Any]
    nvmlDeviceGetUtilizationRates: Callable[[Any], Any]
    nvmlDeviceGetTemperature: Callable[[Any, int], int]
    nvmlDeviceGetPowerUsage: Callable[[Any], int]
    nvmlDeviceGetEnforcedPowerLimit: Callable[[Any], int]
    nvmlDeviceGetClockInfo: Callable[[Any, int], int]
    nvmlDeviceGetTotalEccErrors: Callable[[Any, int, int], int]
    nvmlDeviceGetComputeRunningProcesses: Callable[[Any], list[Any]]
    nvmlDeviceGetGraphicsRunningProcesses: Callable[[Any], list[Any]]
    nvmlDeviceGetMigMode: Callable[[Any], Any]
    nvmlDeviceGetMaxMigDeviceCount: Callable[[Any], int]
    nvmlDeviceGetMigDeviceHandleByIndex: Callable[[Any, int], Any]
    nvmlDeviceGetGpuInstanceId: Callable[[Any], int]
    nvmlDeviceGetComputeInstanceId: Callable[[Any], int]


class GpuSource(Protocol):
    """Something that reads a machine's GPUs. Its methods block."""

    def read(self) -> Status:
        """The state now. It never raises: what cannot be read is said in the status."""

    def version(self) -> tuple[str, str]:
        """The source's name (``none`` where there is nothing to read from) and its library's version."""

    def close(self) -> None:
        """Let go of the driver."""


class Nvml:
    """GPUs through NVML. Calls must not overlap.

    Args:
        library: `pynvml`, found when first needed so that a machine without it answers with the reason.
    """

    def __init__(self, library: NvmlLibrary | None = None) -> None:
        self._library = library
        self._open = False

    def read(self) -> Status:
        """The state now; a driver that went away is opened again the next time."""
        now = int(time.time() * 1000)
        nvml = self._library or _import_library()
        if nvml is None:
            return Status(read_at_unix_ms=now, unavailable_reason="The package nvidia-ml-py is not installed.")
        self._library = nvml
        try:
            if not self._open:
                nvml.nvmlInit()
                self._open = True
            devices = tuple(_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
            return Status(
                read_at_unix_ms=now,
                devices=devices,
                driver_version=nvml.nvmlSystemGetDriverVersion(),
                cuda_version=_cuda_version(nvml),
                unavailable_reason="" if devices else "The driver finds no GPU.",
            )
        except nvml.NVMLError as error:
            self.close()
            return Status(read_at_unix_ms=now, unavailable_reason=f"GPUs cannot be read: {_reason(error)}.")

    def version(self) -> tuple[str, str]:
        """``nvml`` and its version once the driver answers, before that ``none``."""
        if not self._open or self._library is None:
            return "none", ""
        try:
            return "nvml", self._library.nvmlSystemGetNVMLVersion()
        except self._library.NVMLError:
            return "none", ""

    def close(self) -> None:
        """Let go of the driver."""
        if self._open and self._library is not None:
            self._open = False
            with suppress(self._library.NVMLError):
                self._library.nvmlShutdown()


def _import_library() -> NvmlLibrary | None:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml  # type: ignore[no-any-return]


class _Figures:
    """Reads one device's figures and takes down what it does not offer."""

    def __init__(self, nvml: NvmlLibrary) -> None:
        self._nvml = nvml
        self.warnings: list[str] = []

    def get(self, what: str, read: Callable[[], T]) -> T | None:
        """The figure, or None and a warning. A driver that is gone ends the whole reading."""
        try:
            return read()
        except self._nvml.NVMLError as error:
            if _code(error) in _DRIVER_GONE:
                raise
            self.warnings.append(f"{what}: {_reason(error)}")
            return None


def _device(nvml: NvmlLibrary, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    figures = _Figures(nvml)
    memory = figures.get("memory", lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    rates = figures.get("utilization", lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    power = figures.get("power", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000)
    limit = figures.get("power limit", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000)
    temperature = figures.get("temperature", lambda: nvml.nvmlDeviceGetTemperature(handle, _TEMPERATURE_GPU))
    clock = figures.get("SM clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, _CLOCK_SM))
    errors = figures.get(
        "ECC errors", lambda: nvml.nvmlDeviceGetTotalEccErrors(handle, _UNCORRECTED, _SINCE_DRIVER_LOAD)
    )
    processes = _processes(nvml, handle, figures)
    mig = _mig(nvml, handle, figures)
    return Device(
        index=index,
        uuid=figures.get("UUID", lambda: nvml.nvmlDeviceGetUUID(handle)) or "",
        name=figures.get("name", lambda: nvml.nvmlDeviceGetName(handle)) or "",
        pci_bus_id=figures.get("PCI bus id", lambda: str(nvml.nvmlDeviceGetPciInfo(handle).busId)) or "",
        memory_total_bytes=memory.total if memory is not None else None,
        memory_used_bytes=memory.used if memory is not None else None,
        memory_free_bytes=memory.free if memory is not None else None,
        utilization_percent=rates.gpu if rates is not None else None,
        memory_utilization_percent=rates.memory if rates is not None else None,
        temperature_celsius=temperature,
        power_watts=power,
        power_limit_watts=limit,
        sm_clock_mhz=clock,
        ecc_uncorrected_errors=errors,
        processes=processes,
        mig=mig,
        warnings=tuple(figures.warnings),
    )


def _processes(nvml: NvmlLibrary, handle: Any, figures: _Figures) -> tuple[Process, ...]:
    compute = figures.get("compute processes", lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    graphics = figures.get("graphics processes", lambda: nvml.nvmlDeviceGetGraphicsRunningProcesses(handle)) or []
    by_pid = {process.pid: process for process in (*graphics, *compute)}
    return tuple(Process(pid, _process_name(nvml, pid), by_pid[pid].usedGpuMemory) for pid in sorted(by_pid))


def _process_name(nvml: NvmlLibrary, pid: int) -> str:
    try:
        return nvml.nvmlSystemGetProcessName(pid)
    except nvml.NVMLError:
        return ""


def _mig(nvml: NvmlLibrary, handle: Any, figures: _Figures) -> Mig:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError as error:
        if _code(error) in _DRIVER_GONE:
            raise
        if _code(error) != _NOT_SUPPORTED:
            figures.warnings.append(f"MIG mode: {_reason(error)}")
        return Mig()
    if not current:
        return Mig(supported=True)
    most = figures.get("MIG instances", lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0
    return Mig(supported=True, enabled=True, instances=tuple(_mig_instances(nvml, handle, most, figures)))


def _mig_instances(nvml: NvmlLibrary, handle: Any, most: int, figures: _Figures) -> Iterable[MigInstance]:
    for slot in range(most):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)
        except nvml.NVMLError as error:
            if _code(error) in _DRIVER_GONE:
                raise
            if _code(error) != _NOT_FOUND:
                figures.warnings.append(f"MIG instance {slot}: {_reason(error)}")
            continue
        yield _mig_instance(nvml, instance, figures)


def _mig_instance(nvml: NvmlLibrary, instance: Any, figures: _Figures) -> MigInstance:
    memory = figures.get("MIG instance's memory", lambda: nvml.nvmlDeviceGetMemoryInfo(instance))
    return MigInstance(
        uuid=figures.get("MIG instance's UUID", lambda: nvml.nvmlDeviceGetUUID(instance)) or "",
        gpu_instance_id=figures.get("GPU instance id", lambda: nvml.nvmlDeviceGetGpuInstanceId(instance)) or 0,
        compute_instance_id=figures.get("compute instance id", lambda: nvml.nvmlDeviceGetComputeInstanceId(instance))
        or 0,
        memory_total_bytes=memory.total if memory is not None else None,
        memory_used_bytes=memory.used if memory is not None else None,
    )


def _cuda_version(nvml: NvmlLibrary) -> str:
    try:
        version = nvml.nvmlSystemGetCudaDriverVersion()
    except nvml.NVMLError:
        return ""
    return f"{version // 1000}.{version % 1000 // 10}"


def _code(error: Exception) -> int:
    return int(getattr(error, "value", 999))


def _reason(error: Exception) -> str:
    return _REASONS.get(_code(error)) or str(error).lower()
