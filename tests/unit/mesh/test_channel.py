"""What is told to gRPC's core."""

from __future__ import annotations

import json

import pytest

from mesh.channel import CLIENT_OPTIONS, SERVER_OPTIONS, core_target, endpoints_of, joined_target, service_config
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


def test_one_name_is_looked_up_by_the_core_and_a_list_at_once() -> None:
    """A single endpoint stays a name; several become addresses."""
    assert core_target("worker:50051") == "dns:///worker:50051"
    assert joined_target(("worker:50051",)) == "dns:///worker:50051"
    assert joined_target(("127.0.0.1:1", "127.0.0.2:2")) == "ipv4:127.0.0.1:1,127.0.0.2:2"


def test_the_service_config_retries_idempotent_methods_only_and_sets_no_timeout() -> None:
    """Grpcio fires methodConfig.timeout early, and a second answer of a generation would be another one."""
    config = json.loads(service_config("embedding.v1.EmbeddingService", ["Embed"]))
    (method,) = config["methodConfig"]
    assert method["name"] == [{"service": "embedding.v1.EmbeddingService", "method": "Embed"}]
    assert "timeout" not in method
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    assert config["healthCheckConfig"] == {"serviceName": "embedding.v1.EmbeddingService"}
    assert "methodConfig" not in json.loads(service_config("x", []))


def test_clients_ping_less_often_than_servers_allow() -> None:
    """A client that pings too often is sent away in the middle of its calls."""
    client, server = dict(CLIENT_OPTIONS), dict(SERVER_OPTIONS)
    assert int(client["grpc.keepalive_time_ms"]) > int(server["grpc.http2.min_ping_interval_without_data_ms"])
    assert int(client["grpc.http2.ping_timeout_ms"]) <= 5000
