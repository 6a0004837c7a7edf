from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetGpuStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetGpuStatusResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: GpuStatus
    def __init__(self, status: _Optional[_Union[GpuStatus, _Mapping]] = ...) -> None: ...

class WatchGpuStatusRequest(_message.Message):
    __slots__ = ("interval_ms",)
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    interval_ms: int
    def __init__(self, interval_ms: _Optional[int] = ...) -> None: ...

class WatchGpuStatusResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: GpuStatus
    def __init__(self, status: _Optional[_Union[GpuStatus, _Mapping]] = ...) -> None: ...

class GpuStatus(_message.Message):
    __slots__ = ("read_at_unix_ms", "devices", "driver_version", "cuda_version", "unavailable_reason")
    READ_AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    DRIVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    CUDA_VERSION_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_REASON_FIELD_NUMBER: _ClassVar[int]
    read_at_unix_ms: int
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    driver_version: str
    cuda_version: str
    unavailable_reason: str
    def __init__(self, read_at_unix_ms: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., driver_version: _Optional[str] = ..., cuda_version: _Optional[str] = ..., unavailable_reason: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("index", "uuid", "name", "memory_total_bytes", "memory_used_bytes", "memory_free_bytes", "utilization_percent", "memory_utilization_percent", "temperature_celsius", "power_watts", "power_limit_watts", "sm_clock_mhz", "processes", "mig", "pci_bus_id", "warnings", "ecc_uncorrected_errors")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_UTILIZATION_PERCENT_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    POWER_WATTS_FIELD_NUMBER: _ClassVar[int]
    POWER_LIMIT_WATTS_FIELD_NUMBER: _ClassVar[int]
    SM_CLOCK_MHZ_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    MIG_FIELD_NUMBER: _ClassVar[int]
    PCI_BUS_ID_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    ECC_UNCORRECTED_ERRORS_FIELD_NUMBER: _ClassVar[int]
    index: int
    uuid: str
    name: str
    memory_total_bytes: int
    memory_used_bytes: int
    memory_free_bytes: int
    utilization_percent: int
    memory_utilization_percent: int
    temperature_celsius: int
    power_watts: float
    power_limit_watts: float
    sm_clock_mhz: int
    processes: _containers.RepeatedCompositeFieldContainer[Process]
    mig: Mig
    pci_bus_id: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    ecc_uncorrected_errors: int
    def __init__(self, index: _Optional[int] = ..., uuid: _Optional[str] = ..., name: _Optional[str] = ..., memory_total_bytes: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., memory_free_bytes: _Optional[int] = ..., utilization_percent: _Optional[int] = ..., memory_utilization_percent: _Optional[int] = ..., temperature_celsius: _Optional[int] = ..., power_watts: _Optional[float] = ..., power_limit_watts: _Optional[float] = ..., sm_clock_mhz: _Optional[int] = ..., processes: _Optional[_Iterable[_Union[Process, _Mapping]]] = ..., mig: _Optional[_Union[Mig, _Mapping]] = ..., pci_bus_id: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ..., ecc_uncorrected_errors: _Optional[int] = ...) -> None: ...

class Process(_message.Message):
    __slots__ = ("pid", "name", "memory_used_bytes")
    PID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    pid: int
    name: str
    memory_used_bytes: int
    def __init__(self, pid: _Optional[int] = ..., name: _Optional[str] = ..., memory_used_bytes: _Optional[int] = ...) -> None: ...

class Mig(_message.Message):
    __slots__ = ("supported", "enabled", "instances")
    SUPPORTED_FIELD_NUMBER: _ClassVar[int]
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    supported: bool
    enabled: bool
    instances: _containers.RepeatedCompositeFieldContainer[MigInstance]
    def __init__(self, supported: _Optional[bool] = ..., enabled: _Optional[bool] = ..., instances: _Optional[_Iterable[_Union[MigInstance, _Mapping]]] = ...) -> None: ...

class MigInstance(_message.Message):
    __slots__ = ("uuid", "gpu_instance_id", "compute_instance_id", "memory_total_bytes", "memory_used_bytes")
    UUID_FIELD_NUMBER: _ClassVar[int]
    GPU_INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    uuid: str
    gpu_instance_id: int
    compute_instance_id: int
    memory_total_bytes: int
    memory_used_bytes: int
    def __init__(self, uuid: _Optional[str] = ..., gpu_instance_id: _Optional[int] = ..., compute_instance_id: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoResponse(_message.Message):
    __slots__ = ("version", "source", "nvml_version", "min_interval_ms", "max_interval_ms")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    NVML_VERSION_FIELD_NUMBER: _ClassVar[int]
    MIN_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    version: str
    source: str
    nvml_version: str
    min_interval_ms: int
    max_interval_ms: int
    def __init__(self, version: _Optional[str] = ..., source: _Optional[str] = ..., nvml_version: _Optional[str] = ..., min_interval_ms: _Optional[int] = ..., max_interval_ms: _Optional[int] = ...) -> None: ...
