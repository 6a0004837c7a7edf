"""Which addresses are public: only these are asked for documents."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Written out, because `is_private` and `is_global` have changed with Python's versions and leave gaps: 100.64.0.0/10 is
# neither private nor global, multicast is global. From IANA's registries of special-purpose addresses.
_NOT_PUBLIC: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' and clouds' own; Alibaba's metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # public by its number, and Azure's own service to a virtual machine
        "169.254.0.0/16",  # link-local; most clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "2001::/23",  # protocol assignments; Teredo, which carries an IPv4 address
        "2001:db8::/32",
        "2002::/16",  # 6to4, which carries an IPv4 address
        "3fff::/20",
    )
)
# All that is given out of IPv6's space lies in here. Outside are loopback, link-local, unique local and multicast
# addresses, and those that carry an IPv4 address: mapped, compatible, translated (NAT64).
_IPV6_GIVEN_OUT = ipaddress.ip_network("2000::/3")


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet's, and none that leads somewhere else by another way of writing it."""
    if address.version == 6 and address not in _IPV6_GIVEN_OUT:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


def may_be_asked(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether a document may be fetched from there: it is public, or the operator allows its network."""
    return is_public(address) or any(address in network for network in allowed)
