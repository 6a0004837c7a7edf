from __future__ import annotations

from pathlib import Path

from ops.local.ports import Holder, holder_of, listening_inodes

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 0100007F:1F40 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0
   2: 00000000:C383 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0
"""


def test_only_listeners_hold_a_port() -> None:
    """Connections of clients on the same port are not what is in the way."""
    assert listening_inodes(TABLE, 8000) == {"4711"}
    assert listening_inodes(TABLE, 50051) == {"4713"}
    assert listening_inodes(TABLE, 1) == set()


def test_the_process_that_holds_a_port_is_named(tmp_path: Path) -> None:
    """From a port to its socket's inode, and from there to the process that has it open."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(TABLE)
    for pid, target in ((41, "socket:[1]"), (42, "socket:[4711]")):
        (tmp_path / str(pid) / "fd").mkdir(parents=True)
        (tmp_path / str(pid) / "fd" / "3").symlink_to(target)
        (tmp_path / str(pid) / "cmdline").write_bytes(b"python\0-m\0http.server\0")
    assert holder_of(8000, tmp_path) == Holder(42, "python -m http.server")


def test_without_proc_nobody_is_named(tmp_path: Path) -> None:
    """Systems without /proc get the port's number alone, not an error."""
    assert holder_of(8000, tmp_path) is None
