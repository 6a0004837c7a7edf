"""What is known about the mesh that runs, and the lock that lets one command at a time change it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ops.local.failures import OperatorError
from ops.local.layout import Layout


@dataclass(frozen=True)
class Record:
    """A started mesh. Written before its first process starts, so that none can be lost."""

    run_id: str
    mode: str
    gateway_url: str
    ports: tuple[int, ...]

    def write(self, path: Path) -> None:
        """Write the record whole or not at all."""
        write_atomically(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record at ``path``, or None where there is none that can be read."""
        try:
            content = json.loads(path.read_text())
            return cls(
                run_id=str(content["run_id"]),
                mode=str(content["mode"]),
                gateway_url=str(content["gateway_url"]),
                ports=tuple(int(port) for port in content["ports"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content in one step: a reader sees the old or the new, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: two meshes with their own locks may share a folder of models or environments.
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        with fresh.open("x") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


@contextmanager
def exclusive(layout: Layout, purpose: str) -> Iterator[None]:
    """Hold the mesh's lock for the block. The system frees it when the process ends, however it ends.

    Raises:
        OperatorError: another command holds it; the message says which.
    """
    layout.run.mkdir(parents=True, exist_ok=True)
    with layout.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise OperatorError(
                f"Another command is at work on this mesh: {file.read().strip() or 'unknown'}.",
                hint="Wait until it has finished, or end it with Ctrl-C where it runs, then run this again.",
            ) from None
        file.truncate(0)
        file.write(f"{purpose}, process {os.getpid()}")
        file.flush()
        yield
        file.truncate(0)
