"""What counts as the internet."""

from __future__ import annotations

import ipaddress

import pytest

from gateway.url_sources.addresses import is_public, may_be_asked


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "169.254.170.2",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.7",
        "203.0.113.7",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:93.184.215.14",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::a00:1",
        "100::1",
        "2001::7f00:1",
        "2001:db8::1",
        "2002:7f00:1::1",
        "2002:a9fe:a9fe::",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_addresses_that_are_not_the_internets(address: str) -> None:
    """Loopback, private, link-local, metadata, shared, documentation, multicast, and what carries another address."""
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "93.184.215.14", "100.63.255.255", "100.128.0.0", "172.32.0.1", "2606:4700::1111", "2a00:1450::200e"],
)
def test_addresses_of_the_internet(address: str) -> None:
    """Also those just beside what is kept for other uses."""
    assert is_public(ipaddress.ip_address(address))


def test_the_operator_may_open_a_network() -> None:
    """That one, of its own kind of address, and no other."""
    allowed = (ipaddress.ip_network("10.20.0.0/16"), ipaddress.ip_network("fd12::/16"))
    answers = {
        each: may_be_asked(ipaddress.ip_address(each), allowed)
        for each in ("10.20.3.4", "10.21.0.1", "fd12::1", "fd13::1", "::ffff:10.20.3.4", "127.0.0.1", "1.1.1.1")
    }
    assert [each for each, asked in answers.items() if asked] == ["10.20.3.4", "fd12::1", "1.1.1.1"]
