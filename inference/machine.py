"""What this machine is, without importing a framework: a choice of engine made here holds here only."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

_FRAMEWORKS = ("torch", "onnxruntime", "onnxruntime-gpu", "transformers")
_CPU_FACTS = ("model name", "flags", "Features", "CPU implementer", "CPU part")
_CUDA_NODES = ("/dev/nvidiactl", "/dev/dxg")


def cpus() -> int:
    """CPUs this process may use: its affinity, and the share its container has."""
    available = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(available, int(quota) // int(period)))
    except (OSError, ValueError):
        return available


def cpu_flags() -> frozenset[str]:
    """Instruction sets that the kernel reports, by its names (``amx_bf16``); empty where it reports none so."""
    for line in _cpu_facts():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def installed(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def may_have_cuda() -> bool:
    """Whether asking torch for a CUDA device can be worth the import."""
    version = installed("torch")
    return version is not None and "+cpu" not in version and any(Path(node).exists() for node in _CUDA_NODES)


def fingerprint() -> str:
    """Twelve hex digits that change with the CPU, the number of CPUs, the GPUs and the frameworks' versions."""
    facts = [platform.machine(), str(cpus()), *_cpu_facts(), *_gpu_facts()]
    facts += [f"{name}={installed(name)}" for name in _FRAMEWORKS]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def _cpu_facts() -> list[str]:
    """Of the first processor listed; its frequency is left out, since it changes by the second."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    except OSError:
        return [platform.processor()]
    return [line for line in first.splitlines() if line.split("\t", 1)[0].strip() in _CPU_FACTS]


def _gpu_facts() -> list[str]:
    return [node for node in _CUDA_NODES if Path(node).exists()] + sorted(
        file.read_text(encoding="utf-8", errors="replace").splitlines()[0]
        for file in Path("/proc/driver/nvidia/gpus").glob("*/information")
    )
