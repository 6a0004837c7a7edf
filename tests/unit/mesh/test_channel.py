"""What is told to gRPC's core."""

from __future__ import annotations

import pytest

from mesh.channel import CLIENT_OPTIONS, SERVER_OPTIONS, Place, endpoints_of, place_of
from mesh.settings import SettingsError


def test_endpoints_come_from_a_list_a_string_or_a_name() -> None:
    """All the ways to write a target."""
    assert endpoints_of("a:1, b:2,") == ("a:1", "b:2")
    assert endpoints_of(["a:1", "b:2"]) == ("a:1", "b:2")
    assert endpoints_of("dns:///workers:50051") == ("dns:///workers:50051",)


@pytest.mark.parametrize(
    ("bad", "hint"), [("http://a:1", "without http"), ("a", "no port"), ("dns:///a", "no port"), ("a:99999", "no port"),
                      ("", "at least one")],
)  # fmt: skip
def test_a_malformed_endpoint_is_refused_with_the_right_form(bad: str, hint: str) -> None:
    """The message shows what to write."""
    with pytest.raises(SettingsError, match=hint):
        endpoints_of(bad)


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ("127.0.0.1:50051", Place("127.0.0.1:50051", address="ipv4:127.0.0.1:50051")),
        ("[::1]:50051", Place("[::1]:50051", address="ipv6:[::1]:50051")),
        ("unix:/run/worker", Place("unix:/run/worker", address="unix:/run/worker")),
        ("ipv4:10.0.0.7:1", Place("ipv4:10.0.0.7:1", address="ipv4:10.0.0.7:1")),
        ("worker:50051", Place("worker:50051", host="worker", port=50051)),
        ("dns:///worker:50051", Place("dns:///worker:50051", host="worker", port=50051)),
        ("dns:///10.0.0.7:50051", Place("dns:///10.0.0.7:50051", address="ipv4:10.0.0.7:50051")),
    ],
)
def test_an_endpoint_is_an_address_or_a_name(written: str, place: Place) -> None:
    """An address is used as it is; a name is looked up, whether or not it is written with dns:///."""
    assert place_of(written) == place


def test_clients_ping_less_often_than_servers_allow() -> None:
    """A client that pings too often is sent away in the middle of its calls."""
    client, server = dict(CLIENT_OPTIONS), dict(SERVER_OPTIONS)
    assert int(client["grpc.keepalive_time_ms"]) > int(server["grpc.http2.min_ping_interval_without_data_ms"])


def test_a_frozen_peer_is_given_up_within_eight_seconds() -> None:
    """The wait for a ping and the wait for its answer, together."""
    client = dict(CLIENT_OPTIONS)
    assert int(client["grpc.keepalive_time_ms"]) + int(client["grpc.http2.ping_timeout_ms"]) <= 8000
    assert client["grpc.http2.ping_timeout_ms"] == client["grpc.keepalive_timeout_ms"]
