"""A real Redis, for the tests of what gateways share."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.real_redis import SERVER, started


@pytest.fixture
def socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Redis listens; a short path, since a socket's is limited."""
    return tmp_path_factory.mktemp("r") / "s"


@pytest.fixture
def redis(socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Redis of our own, without a network."""
    if SERVER is None:
        pytest.skip("needs redis-server (Debian: apt-get install redis-server)")
    process = started(socket)
    yield process
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()
