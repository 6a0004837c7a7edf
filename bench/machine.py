"""Facts about the machine and the versions, without which no figure means anything."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_WORKERS_PACKAGES = ("torch", "sentence-transformers", "transformers", "onnxruntime", "numpy", "grpcio", "httpx")
_GATEWAY_PACKAGES = ("fastapi", "starlette", "uvicorn", "httptools", "uvloop", "grpcio", "pydantic")
_BUSY_SHARE = 0.1


def facts(gateway_python: Path) -> dict[str, Any]:
    """What the machine is and what runs on it."""
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": _commit(),
        "workers": _spelled({name: _version(name) for name in _WORKERS_PACKAGES}),
        "gateway": _spelled(_versions_of(gateway_python)),
    }


def cores() -> int:
    """Logical cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_cores(seconds: float = 0.5) -> float | None:
    """How many cores others keep busy, watched for a moment in which the benchmark itself does nothing.

    None where the system does not say. Steal counts: time that this machine's own host gave to someone else.
    """
    try:
        before = _idle_seconds()
        time.sleep(seconds)
        idle = _idle_seconds() - before
    except OSError:
        return None
    return max(0.0, (os.cpu_count() or 1) - idle / seconds)


def _idle_seconds() -> float:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def busy_warning(watched: Sequence[float]) -> str:
    """A sentence for a machine that had other work, from what was watched before each part; empty where it had none."""
    most = max(watched, default=0.0)
    if most <= _BUSY_SHARE * cores():
        return ""
    return (
        f"The machine had other work: up to {most:.1f} of {cores()} cores were busy between the parts. "
        "These figures are no record; measure again on a quiet machine."
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _versions_of(python: Path) -> dict[str, str]:
    """The versions in another environment."""
    code = (
        "import json, sys; from importlib import metadata\n"
        "print(json.dumps({name: metadata.version(name) for name in sys.argv[1:]}))"
    )
    try:
        output = subprocess.run(  # noqa: S603 - our own interpreter
            [python, "-c", code, *_GATEWAY_PACKAGES], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    found: dict[str, str] = json.loads(output)
    return found


def _spelled(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _commit() -> str:
    """The commit that is checked out, with ``+`` where files differ from it; empty without git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],  # noqa: S607 - whichever git the user has
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return ""
    return described.stdout.strip()
