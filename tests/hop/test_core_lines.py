"""What gRPC's core says of its own: nothing, in a process of the mesh, that a peer could make it say at will."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops.tls.testing import Office

_STRANGER = """
import socket, sys, time
from concurrent import futures

import mesh.clients
import grpc

key, certificate = (open(path, "rb").read() for path in sys.argv[1:])
server = grpc.server(futures.ThreadPoolExecutor(1))
port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
server.start()
with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
    stranger.sendall(b"no TLS at all, but long enough to be seen as such" * 4)
    while stranger.recv(4096):
        pass
server.stop(0).wait()
"""


@pytest.mark.slow
def test_a_handshake_that_fails_writes_no_line_of_the_cores_own(tmp_path: Path) -> None:
    """However often somebody knocks without TLS, the lines of a worker's log stay the mesh's own."""
    environ = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    files = Office.open(tmp_path).issue("gateway")
    done = subprocess.run(
        [sys.executable, "-c", _STRANGER, str(files.key), str(files.certificate)],
        env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
