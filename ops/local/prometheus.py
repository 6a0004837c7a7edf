"""Prometheus for the checks that run a real one: found where it is, or unpacked from Debian's package.

There is no wheel of it. The package is unpacked into a directory of this project's instead of being installed, so that
neither root nor a system service is involved.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ops.local.layout import Layout

PACKAGE = "prometheus"
_SECONDS = 300


def find_program(name: str) -> str | None:
    """The path of ``prometheus`` or ``promtool``: on PATH, or where `unpack` put it. None where there is none."""
    own = _directory(Layout.from_environment(os.environ)) / "usr" / "bin" / name
    return shutil.which(name) or (str(own) if own.exists() else None)


def unpack(layout: Layout) -> str:
    """Bring Prometheus where there is none. Returns why that cannot be; empty where it is there."""
    if find_program("prometheus") and find_program("promtool"):
        return ""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return (
            "Prometheus is not on PATH, and this machine has no apt-get to bring it. Install prometheus 2.42 or newer."
        )
    with tempfile.TemporaryDirectory(prefix="mesh-prometheus-") as scratch:
        try:
            _download(scratch)
            (package,) = Path(scratch).glob(f"{PACKAGE}_*.deb")
            # Beside its place and then moved: what was cut off must not look whole.
            unpacked = Path(scratch) / "unpacked"
            _run(["dpkg-deb", "--extract", str(package), str(unpacked)], scratch)
            target = _directory(layout)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            shutil.move(unpacked, target)
        except (OSError, ValueError, subprocess.SubprocessError):
            return "Prometheus is not on PATH, and apt-get does not bring it (apt-get update may be due)."
    return ""


def _download(directory: str) -> None:
    """Fetch the package; where apt does not know of it, have it read its lists first, which takes root."""
    try:
        _run(["apt-get", "download", PACKAGE], directory)
    except subprocess.CalledProcessError:
        _run(["apt-get", "update"], directory)
        _run(["apt-get", "download", PACKAGE], directory)


def _run(command: list[str], directory: str) -> None:
    subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=_SECONDS)  # noqa: S603 - our own


def _directory(layout: Layout) -> Path:
    return layout.envs / "prometheus"


if __name__ == "__main__":
    if why_not := unpack(Layout.from_environment(os.environ)):
        sys.exit(why_not)
    print(find_program("prometheus"))
