"""``python -m gpu_services``: serve until SIGTERM."""

from __future__ import annotations

from gpu_services.settings import GpuServicesSettings
from gpu_services.worker import capabilities
from mesh.serving import run


def main() -> int:
    """Serve until told to end; returns the exit code."""
    return run("gpu-services", GpuServicesSettings, capabilities)


if __name__ == "__main__":
    raise SystemExit(main())
