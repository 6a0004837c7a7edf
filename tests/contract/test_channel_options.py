"""Every option that we give to gRPC's core is one that the core knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpc._cython import cygrpc

from mesh.channel import CLIENT_OPTIONS, SERVER_OPTIONS, message_size_options


@pytest.fixture(scope="module")
def core() -> bytes:
    """The core's machine code, in which the names of its options stand as they are."""
    return Path(cygrpc.__file__).read_bytes()


@pytest.mark.parametrize(
    "name", sorted({name for name, _ in (*CLIENT_OPTIONS, *SERVER_OPTIONS, *message_size_options(1))})
)
def test_the_core_knows_the_option(core: bytes, name: str) -> None:
    """The core ignores what it does not know: a misspelt keepalive would cut every idle connection."""
    assert name.encode() + b"\0" in core
