"""Which names of hosts cannot be somebody else's.

A page on another site can point its own name at 127.0.0.1 and then read, with its visitor's browser, what listens
there (DNS rebinding). What gives it away is the name, which the browser sends as the Host header.
"""

from __future__ import annotations

import ipaddress


def without_port(host: str) -> str:
    """The name or address in a Host header, as it is compared."""
    host = host.lower()
    if host.startswith("["):
        address, _, rest = host[1:].partition("]")
        return address if not rest or rest.startswith(":") else host
    return host.partition(":")[0].removesuffix(".")


def is_nobody_elses(name: str) -> bool:
    """Whether no other site can be called so: addresses, ``localhost``, and names without a dot."""
    return "." not in name or name.endswith(".localhost") or _is_address(name)


def is_loopback(host: str) -> bool:
    """Whether what listens there is reached from this machine alone."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
