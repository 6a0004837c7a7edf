"""What is told about GPUs. None is what the device or the driver does not offer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Process:
    """A process that uses a GPU; the name is empty where it cannot be seen (another container's process)."""

    pid: int
    name: str
    memory_used_bytes: int | None


@dataclass(frozen=True, slots=True)
class MigInstance:
    """One instance of a GPU that is cut into several."""

    uuid: str
    gpu_instance_id: int
    compute_instance_id: int
    memory_total_bytes: int | None
    memory_used_bytes: int | None


@dataclass(frozen=True, slots=True)
class Mig:
    """How a GPU is cut into instances."""

    supported: bool = False
    enabled: bool = False
    instances: tuple[MigInstance, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU."""

    index: int
    uuid: str = ""
    name: str = ""
    pci_bus_id: str = ""
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    utilization_percent: int | None = None
    memory_utilization_percent: int | None = None
    temperature_celsius: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    sm_clock_mhz: int | None = None
    ecc_uncorrected_errors: int | None = None
    processes: tuple[Process, ...] = ()
    mig: Mig = Mig()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """All GPUs at one moment; with no devices the reason says why."""

    read_at_unix_ms: int
    devices: tuple[Device, ...] = ()
    driver_version: str = ""
    cuda_version: str = ""
    unavailable_reason: str = ""
