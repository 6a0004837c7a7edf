"""Whether the mesh's ports are free, and who holds one that is not."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ops.local.failures import OperatorError
from ops.local.topology import Listener

_LISTEN = "0A"  # TCP_LISTEN, as /proc/net/tcp writes it


@dataclass(frozen=True)
class Holder:
    """A process that holds a port."""

    pid: int
    command: str


def is_free(host: str, port: int) -> bool:
    """Whether a process could listen on the address now.

    SO_REUSEADDR is set, as servers set it, so that connections of the last run in TIME_WAIT do not count; SO_REUSEPORT
    is not, so that a gRPC server that shares its port counts.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def listening_inodes(table: str, port: int) -> set[str]:
    """The socket inodes that listen on ``port``, from the text of ``/proc/net/tcp`` or ``tcp6``."""
    inodes = set()
    for line in table.splitlines()[1:]:
        columns = line.split()
        if len(columns) > 9 and columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
            inodes.add(columns[9])
    return inodes


def holder_of(port: int, proc: Path = Path("/proc")) -> Holder | None:
    """The process that listens on ``port``, or None where the system does not tell (no /proc, another user's)."""
    inodes: set[str] = set()
    for name in ("tcp", "tcp6"):
        table = proc / "net" / name
        if table.exists():
            inodes |= listening_inodes(table.read_text(), port)
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for descriptor in proc.glob("[0-9]*/fd/*"):
        try:
            held = str(descriptor.readlink()) in wanted
            command = (descriptor.parents[1] / "cmdline").read_bytes() if held else b""
        except OSError:  # it ended meanwhile, or it is another user's
            continue
        if held:
            return Holder(
                int(descriptor.parents[1].name), command.replace(b"\0", b" ").decode(errors="replace").strip()
            )
    return None


def refuse_taken(listeners: Iterable[Listener]) -> None:
    """Raise OperatorError naming every port that something else holds, by whom, and how to choose another."""
    taken = [listener for listener in listeners if not is_free(listener.host, listener.port)]
    if not taken:
        return
    lines = []
    for listener in taken:
        holder = holder_of(listener.port)
        by = f" by process {holder.pid} ({holder.command[:100]})" if holder else ""
        lines.append(f"Port {listener.port}, wanted for {listener.process}, is in use{by}.")
    example = " ".join(
        f"{listener.variable}={listener.port + 10000 if listener.port < 50000 else listener.port + 1000}"
        for listener in taken
    )
    raise OperatorError(
        "\n".join(lines),
        hint=f"Stop that process, or choose other ports: {example} ./scripts/start_torch_isolation.sh",
    )
