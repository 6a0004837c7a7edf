"""GPUs are read figure by figure: what is missing is a warning, not a failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from gpu_services.gpu.nvml import Nvml

NOT_SUPPORTED, NOT_FOUND, NOT_LOADED, NO_PERMISSION, LOST = 3, 6, 9, 4, 15


class FakeError(Exception):
    """As pynvml's: the driver's code in `value`."""

    def __init__(self, value: int) -> None:
        super().__init__({NOT_SUPPORTED: "Not Supported", NO_PERMISSION: "Insufficient Permissions"}.get(value, "?"))
        self.value = value


@dataclass
class FakeNvml:
    """Two GPUs behind NVML's functions; `failing` maps a function's name to the code that it raises."""

    failing: dict[str, int] = field(default_factory=dict)
    gpus: int = 2
    mig: bool = False
    initialised: int = 0
    shut_down: int = 0
    NVMLError = FakeError

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            if name in self.failing:
                raise FakeError(self.failing[name])
            return getattr(self, f"_{name}")(*arguments)

        return call

    def _nvmlInit(self) -> None:
        self.initialised += 1

    def _nvmlShutdown(self) -> None:
        self.shut_down += 1

    def _nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def _nvmlSystemGetNVMLVersion(self) -> str:
        return "13.580.1"

    def _nvmlSystemGetCudaDriverVersion(self) -> int:
        return 12080

    def _nvmlSystemGetProcessName(self, pid: int) -> str:
        if pid == 7:
            raise FakeError(NOT_FOUND)
        return f"program-{pid}"

    def _nvmlDeviceGetCount(self) -> int:
        return self.gpus

    def _nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"gpu{index}"

    def _nvmlDeviceGetName(self, handle: str) -> str:
        return f"Model {handle}"

    def _nvmlDeviceGetUUID(self, handle: str) -> str:
        return f"GPU-{handle}"

    def _nvmlDeviceGetPciInfo(self, handle: str) -> Any:
        return SimpleNamespace(busId="00000000:18:00.0")

    def _nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(total=80, used=30, free=50)

    def _nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return SimpleNamespace(gpu=0, memory=12)

    def _nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 40 + sensor

    def _nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 123_456

    def _nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return 700_000

    def _nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:
        return 1000 + clock

    def _nvmlDeviceGetTotalEccErrors(self, handle: str, kind: int, counter: int) -> int:
        return 10 * kind + counter

    def _nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return [SimpleNamespace(pid=9, usedGpuMemory=5), SimpleNamespace(pid=7, usedGpuMemory=None)]

    def _nvmlDeviceGetGraphicsRunningProcesses(self, handle: str) -> list[Any]:
        return [SimpleNamespace(pid=9, usedGpuMemory=4)]

    def _nvmlDeviceGetMigMode(self, handle: str) -> tuple[int, int]:
        return int(self.mig), int(self.mig)

    def _nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:
        return 7

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, slot: int) -> str:
        if slot not in (0, 3):
            raise FakeError(NOT_FOUND)
        return f"mig{slot}"

    def _nvmlDeviceGetGpuInstanceId(self, handle: str) -> int:
        return int(handle[-1]) + 1

    def _nvmlDeviceGetComputeInstanceId(self, handle: str) -> int:
        return 0


def _read(nvml: Any) -> Any:
    return Nvml(nvml).read()


def test_two_gpus_are_read_whole() -> None:
    """Every figure comes in the unit that its name says; zero is a figure."""
    status = _read(FakeNvml())
    assert (status.driver_version, status.cuda_version, status.unavailable_reason) == ("580.1", "12.8", "")
    assert [device.uuid for device in status.devices] == ["GPU-gpu0", "GPU-gpu1"]
    device = status.devices[1]
    assert (device.index, device.name, device.pci_bus_id) == (1, "Model gpu1", "00000000:18:00.0")
    assert (device.memory_total_bytes, device.memory_used_bytes, device.memory_free_bytes) == (80, 30, 50)
    assert (device.utilization_percent, device.memory_utilization_percent) == (0, 12)
    assert (device.temperature_celsius, device.sm_clock_mhz, device.ecc_uncorrected_errors) == (40, 1001, 10)
    assert (device.power_watts, device.power_limit_watts) == (123.456, 700.0)
    assert [(p.pid, p.name, p.memory_used_bytes) for p in device.processes] == [(7, "", None), (9, "program-9", 5)]
    assert (device.mig.supported, device.mig.enabled, device.warnings) == (True, False, ())


@pytest.mark.parametrize(
    ("function", "attribute", "named"),
    [
        ("nvmlDeviceGetMemoryInfo", "memory_total_bytes", "memory"),
        ("nvmlDeviceGetUtilizationRates", "utilization_percent", "utilization"),
        ("nvmlDeviceGetTemperature", "temperature_celsius", "temperature"),
        ("nvmlDeviceGetPowerUsage", "power_watts", "power"),
        ("nvmlDeviceGetEnforcedPowerLimit", "power_limit_watts", "power limit"),
        ("nvmlDeviceGetClockInfo", "sm_clock_mhz", "SM clock"),
        ("nvmlDeviceGetTotalEccErrors", "ecc_uncorrected_errors", "ECC errors"),
    ],
)
def test_a_figure_that_is_not_offered_is_unset_with_a_warning(function: str, attribute: str, named: str) -> None:
    """One figure less, the others whole, the driver's reason beside it."""
    device = _read(FakeNvml(failing={function: NOT_SUPPORTED})).devices[0]
    assert getattr(device, attribute) is None
    assert device.warnings == (f"{named}: not supported",)
    assert device.name == "Model gpu0"


def test_processes_that_may_not_be_seen_are_a_warning() -> None:
    """Without the permission there are no processes, and the reason is told."""
    device = _read(FakeNvml(failing={"nvmlDeviceGetComputeRunningProcesses": NO_PERMISSION})).devices[0]
    assert [process.pid for process in device.processes] == [9]
    assert device.warnings == ("compute processes: insufficient permissions",)


def test_mig_instances_are_listed() -> None:
    """Empty slots are skipped; each instance has its ids and its memory."""
    mig = _read(FakeNvml(mig=True)).devices[0].mig
    assert mig.enabled
    assert [(i.uuid, i.gpu_instance_id, i.memory_total_bytes) for i in mig.instances] == [
        ("GPU-mig0", 1, 80),
        ("GPU-mig3", 4, 80),
    ]


def test_a_gpu_without_mig_says_so_without_a_warning() -> None:
    """That a consumer's card cannot be cut is nothing to warn of."""
    device = _read(FakeNvml(failing={"nvmlDeviceGetMigMode": NOT_SUPPORTED})).devices[0]
    assert not device.mig.supported
    assert device.warnings == ()


@pytest.mark.parametrize(
    ("failing", "gpus", "reason"),
    [({"nvmlInit": NOT_LOADED}, 2, "driver is not loaded"), ({"nvmlInit": 12}, 2, "not installed"), ({}, 0, "no GPU")],
)
def test_a_machine_without_gpus_says_why(failing: dict[str, int], gpus: int, reason: str) -> None:
    """No driver, no library, no device: an empty list and a reason."""
    status = _read(FakeNvml(failing=failing, gpus=gpus))
    assert status.devices == ()
    assert reason in status.unavailable_reason
    assert status.read_at_unix_ms > 0


@pytest.mark.parametrize("function", ["nvmlDeviceGetTemperature", "nvmlDeviceGetMigMode", "nvmlDeviceGetHandleByIndex"])
def test_a_driver_lost_midway_is_told_and_opened_again(function: str) -> None:
    """Half a reading is not given for a whole one; the next reading begins anew."""
    nvml = FakeNvml()
    source = Nvml(nvml)  # type: ignore[arg-type] # its functions are made on demand
    assert source.version() == ("none", "")
    assert len(source.read().devices) == 2
    assert source.version() == ("nvml", "13.580.1")
    nvml.failing = {function: LOST}
    status = source.read()
    assert status.devices == ()
    assert "fallen off the bus" in status.unavailable_reason
    nvml.failing = {}
    assert len(source.read().devices) == 2
    assert (nvml.initialised, nvml.shut_down) == (2, 1)
    source.close()
    source.close()
    assert nvml.shut_down == 2
