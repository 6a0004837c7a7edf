"""Starting a Redis that a test hurts."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

SERVER = shutil.which("redis-server")
TIMEOUT = 0.25
"""Generous: the machine may be busy, and only a Redis that is hurt may look slow."""


def started(socket: Path) -> subprocess.Popen[bytes]:
    """One that listens on ``socket`` alone and keeps nothing."""
    assert SERVER is not None
    socket.unlink(missing_ok=True)
    arguments = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no", "--dir", socket.parent]
    process = subprocess.Popen([SERVER, *map(str, arguments)], stdout=subprocess.DEVNULL)
    ends = time.monotonic() + 10
    while not socket.exists():
        assert process.poll() is None, "redis-server ended at once"
        assert time.monotonic() < ends, "redis-server did not come up"
        time.sleep(0.01)
    return process
