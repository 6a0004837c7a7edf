"""How much a group of processes has computed: what tells an engine at work from one that hangs."""

from __future__ import annotations

import os
from pathlib import Path

_PARENT, _GROUP, _USER_TICKS, _SYSTEM_TICKS = 1, 2, 11, 12
"""Positions in /proc/PID/stat after the name, which ends at the last bracket and may hold anything."""


def group_cpu_seconds(group: int, proc: Path = Path("/proc"), *, leave_out_door: bool = False) -> float | None:
    """Processor time that the living processes of a process group have used; None where the system does not say.

    With ``leave_out_door`` the group's leader and its children do not count, but only what those have started.

    It reads one small file for each process of the machine: milliseconds, so call it on a thread.
    """
    ticks = 0
    found = False
    try:
        processes = [entry for entry in os.listdir(proc) if entry.isdigit()]
    except OSError:
        return None
    for process in processes:
        try:
            stat = (proc / process / "stat").read_text(encoding="utf-8", errors="replace")
            values = stat.rpartition(")")[2].split()
            if int(values[_GROUP]) == group and not (leave_out_door and group in (int(process), int(values[_PARENT]))):
                ticks += int(values[_USER_TICKS]) + int(values[_SYSTEM_TICKS])
                found = True
        except (OSError, ValueError, IndexError):
            continue  # it has ended meanwhile, or this is no Linux
    return ticks / os.sysconf("SC_CLK_TCK") if found else None
