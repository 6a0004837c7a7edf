"""Runs the worker: `python -m gpu_services`."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Serve until told to end; the exit code."""
    # gRPC reads this when it is imported. Its handlers are for a fork that goes on in Python; ours executes another
    # program at once, and each would write a warning.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from gpu_services.settings import GpuServicesSettings
    from gpu_services.worker import capabilities
    from mesh.serving import run
    from mesh.settings import EXIT_SETTINGS, SettingsError
    from mesh.telemetry import configure_logging

    try:
        settings = GpuServicesSettings.load()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_SETTINGS
    configure_logging("gpu-services", settings.log_format)
    return run(settings, capabilities(settings))


if __name__ == "__main__":
    raise SystemExit(main())
