"""Locks a child process in before it sees a document: memory, files, network, other programs.

Linux does the work (resource limits, seccomp). Elsewhere the lock is weaker, and the child says so when it reports
ready.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import sys
from dataclasses import dataclass

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1  # all threads, those that exist already too

_LOAD_WORD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE_EPERM = 0x7FFF0000, 0x00050000 | 1
_X32_CALLS = 0x40000000


@dataclass(frozen=True, slots=True)
class _Architecture:
    audit: int
    seccomp: int
    refused: tuple[int, ...]
    """socket, execve, execveat, ptrace, process_vm_readv, process_vm_writev, kill, io_uring_setup, pidfd_send_signal"""


_ARCHITECTURES = {
    "x86_64": _Architecture(0xC000003E, 317, (41, 59, 322, 101, 310, 311, 62, 425, 424)),
    "aarch64": _Architecture(0xC00000B7, 277, (198, 221, 281, 117, 270, 271, 129, 425, 424)),
}


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


def die_with_parent(parent_pid: int) -> None:
    """End this process when its parent dies, also by SIGKILL: a child at work does not notice a closed pipe."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent_pid and os.getppid() != parent_pid:
        raise SystemExit("The worker that started this process is gone.")


def lock_in(max_memory_bytes: int, max_output_bytes: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give up for good what a document's conversion does not need.

    Returns:
        What is enforced, and a warning for each thing that this system cannot enforce.
    """
    enforced, warnings = [], []
    limits = (
        ("memory", resource.RLIMIT_AS, max_memory_bytes),
        ("file-size", resource.RLIMIT_FSIZE, max_output_bytes),
        ("open-files", resource.RLIMIT_NOFILE, 256),
        ("core-dump", resource.RLIMIT_CORE, 0),
    )
    for name, which, limit in limits:
        try:
            resource.setrlimit(which, (limit, limit))
            enforced.append(name)
        except (ValueError, OSError):
            warnings.append(f"The limit on {name} cannot be set on this system.")
    if _refuse_system_calls():
        enforced.append("no-network-no-exec")
    else:
        warnings.append(
            "System calls cannot be filtered here; let the container or firewall keep this process off the network."
        )
    return tuple(enforced), tuple(warnings)


def allow_cpu_seconds(seconds: float) -> None:
    """Let this process use ``seconds`` of CPU time from now; then the kernel ends it by SIGXCPU."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, hard))


def resident_bytes() -> int:
    """Memory that this process holds now (on Linux) or held at most (elsewhere)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _refuse_system_calls() -> bool:
    """Have the kernel answer EPERM to sockets, to starting programs and to touching other processes."""
    architecture = _ARCHITECTURES.get(platform.machine())
    if sys.platform != "linux" or architecture is None or sys.maxsize < 2**32:
        return False
    program = _program(architecture)
    instructions = (_Instruction * len(program))(*(_Instruction(*line) for line in program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    wanted = _Program(len(program), instructions)
    return bool(
        libc.syscall(
            ctypes.c_long(architecture.seccomp),
            ctypes.c_uint(_SECCOMP_SET_MODE_FILTER),
            ctypes.c_uint(_SECCOMP_FILTER_FLAG_TSYNC),
            ctypes.byref(wanted),
        )
        == 0
    )


def _program(architecture: _Architecture) -> list[tuple[int, int, int, int]]:
    """A BPF program over `struct seccomp_data`: call number at offset 0, architecture at offset 4."""
    count = len(architecture.refused)
    return [
        (_LOAD_WORD, 0, 0, 4),
        (_JUMP_EQUAL, 0, count + 3, architecture.audit),  # calls of another architecture: refuse
        (_LOAD_WORD, 0, 0, 0),
        (_JUMP_AT_LEAST, count + 1, 0, _X32_CALLS),  # the same calls under other numbers: refuse
        *((_JUMP_EQUAL, count - position, 0, number) for position, number in enumerate(architecture.refused)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE_EPERM),
    ]
