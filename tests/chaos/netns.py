"""A worker in a network namespace of its own, whose packets can be lost: iproute2 and iptables, as root, on Linux.

A namespace is tied to this one by a pair of virtual interfaces. Every rule is made inside the namespace, so nothing
outside it is touched, and deleting it deletes rules and interfaces alike.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

# The range that RFC 2544 keeps for tests of networks, cut into links of two addresses each.
_LINKS = 2**15
_numbers = itertools.count()


class Way(Enum):
    """Which packets a rule is for, seen from the namespace."""

    IN = "INPUT"
    OUT = "OUTPUT"


def why_not() -> str:
    """What is missing for namespaces here; empty where nothing is."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool, package in (("ip", "iproute2"), ("iptables", "iptables")):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (apt-get install {package})"
    try:
        with namespace() as made:
            made.lose(0.5)
    except CommandFailed as failure:
        return f"this system's kernel does not do it: {failure}"
    return ""


class CommandFailed(Exception):
    """``ip`` or ``iptables`` refused; the message is the command and what it said."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace that is up.

    Attributes:
        name: for ``ip netns``.
        address: under which what listens in it is reached from outside.
    """

    name: str
    address: str

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs ``command`` in it."""
        return ["ip", "netns", "exec", self.name, *command]

    def drop(self, *ways: Way) -> None:
        """Let nothing pass in these directions."""
        for way in ways:
            self._iptables("-A", way.value, "-j", "DROP")

    def lose(self, share: float) -> None:
        """Lose this share of the packets, at random, in each direction."""
        for way in Way:
            chance = ("-m", "statistic", "--mode", "random", "--probability", f"{share:.4f}")
            self._iptables("-A", way.value, *chance, "-j", "DROP")

    def heal(self) -> None:
        """Let everything pass."""
        self._iptables("-F")

    def dropped_packets(self) -> int:
        """Packets that the present rules have lost: a fault that hit nothing has proved nothing."""
        listed = self._iptables("-L", "-v", "-n", "-x").splitlines()
        return sum(int(line.split()[0]) for line in listed if " DROP " in line)

    def _iptables(self, *arguments: str) -> str:
        return _run(self.inside(("iptables", "-w", "5", *arguments)))


@contextmanager
def namespace() -> Iterator[Namespace]:
    """A namespace until the block is left.

    Raises:
        CommandFailed: it cannot be made.
    """
    number = next(_numbers)
    name = f"mesh-chaos-{os.getpid()}-{number}"
    # An interface's name has at most 15 characters.
    near, far = f"mc{os.getpid()}n{number}", f"mc{os.getpid()}f{number}"
    _run(("ip", "netns", "add", name))
    try:
        _run(("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name))
        ours, theirs = _free_link()
        _run(("ip", "address", "add", f"{ours}/30", "dev", near))
        _run(("ip", "-n", name, "address", "add", f"{theirs}/30", "dev", far))
        for command in (("link", "set", near, "up"), ("-n", name, "link", "set", far, "up")):
            _run(("ip", *command))
        _run(("ip", "-n", name, "link", "set", "lo", "up"))
        yield Namespace(name, theirs)
    finally:
        # The far end lies in the namespace and takes the near one along, but only when the last process has left it.
        subprocess.run(["ip", "link", "delete", near], capture_output=True, check=False)
        _run(("ip", "netns", "delete", name))


def _free_link() -> tuple[str, str]:
    """Two addresses of a link that no interface here has."""
    taken = _run(("ip", "-brief", "address"))
    for number in random.sample(range(_LINKS), 16):
        first = (198 << 24) + (18 << 16) + 4 * number
        ours, theirs = (".".join(str((first + host >> shift) & 255) for shift in (24, 16, 8, 0)) for host in (1, 2))
        if f" {ours}/" not in taken:
            return ours, theirs
    raise CommandFailed("no free addresses in 198.18.0.0/15")


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    if done.returncode:
        raise CommandFailed(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
