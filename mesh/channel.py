"""Channel and server options, and the service config: everything that is told to gRPC's core, in one place.

The numbers belong together. A client that pings faster than the server allows is sent away ("Too many pings"), and
keepalive without ``ping_timeout`` finds a frozen peer only after a minute.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from mesh.settings import SettingsError
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

Target = str | Sequence[str]
"""One endpoint ("host:port"), several ("a:1,b:2" or a sequence), or a resolver's name ("dns:///name:port")."""

Option = tuple[str, int | str]

CLIENT_OPTIONS: tuple[Option, ...] = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # Each hop keeps its own connections; the core would share them between equal channels of one process.
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy meant for the internet must not carry the hop.
    ("grpc.enable_http_proxy", 0),
)

SERVER_OPTIONS: tuple[Option, ...] = (
    # Less than the clients' 10 s, so that their pings are always welcome. (The core's header calls this constant
    # MIN_RECV_PING_INTERVAL…; its value has no "recv", and a name that the core does not know is silently ignored.)
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    # Connections end after a while, so that clients look names up again and spread over new endpoints.
    # No max_connection_age_grace: it would cut every longer stream, and health watches with them. What is under way
    # stays on the old connection until it is done.
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_metadata_size", 16 * 1024),
    # Two processes on one port would share its calls by chance; the second must fail to start.
    ("grpc.so_reuseport", 0),
)


def message_size_options(max_message_bytes: int) -> tuple[Option, ...]:
    """Limits for both directions; the core's own default of 4 MiB is silent until it bites."""
    return (
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
    )


def endpoints_of(target: Target) -> tuple[str, ...]:
    """The endpoints that a target names, each as the caller wrote it.

    Raises:
        SettingsError: an endpoint has no port, or is written as a URL.
    """
    parts = target.split(",") if isinstance(target, str) else target
    endpoints = tuple(part.strip() for part in parts if part.strip())
    if not endpoints:
        raise SettingsError("A hop needs at least one endpoint, for example 127.0.0.1:50051.")
    for endpoint in endpoints:
        _refuse_malformed(endpoint)
    return endpoints


def _refuse_malformed(endpoint: str) -> None:
    if endpoint.startswith(("ipv4:", "ipv6:", "unix:")):
        return
    if "://" in endpoint and not endpoint.startswith("dns:"):
        raise SettingsError(f"{endpoint} is a URL; a hop takes host:port or dns:///name:port, without http://.")
    host, _, port = endpoint.removeprefix("dns:///").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingsError(f"{endpoint} names no host or no port: write host:port, for example 127.0.0.1:50051.")


def core_target(endpoint: str) -> str:
    """An endpoint as gRPC's core takes it. A plain host:port is looked up by DNS again when a connection breaks."""
    return endpoint if endpoint.startswith(("dns:", "ipv4:", "ipv6:", "unix:")) else f"dns:///{endpoint}"


def joined_target(endpoints: Sequence[str]) -> str:
    """One target for all endpoints. The core takes a list of addresses only, so a name in a list is looked up here.

    A name that moves belongs alone into its hop (``dns:///name:port``): then the core looks it up again by itself.

    A name in a list that is not known now is left out until the next start, so that a missing replica stops nobody.
    """
    if len(endpoints) == 1:
        return core_target(endpoints[0])
    addresses = [address for endpoint in endpoints if (address := _address(endpoint))]
    return "ipv4:" + ",".join(addresses) if addresses else core_target(endpoints[0])


def _address(endpoint: str) -> str | None:
    host, _, port = endpoint.removeprefix("ipv4:").rpartition(":")
    try:
        found = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        log.warning("an endpoint of a list cannot be looked up and gets no calls", extra=fields(endpoint=endpoint))
        return None
    return f"{found[0][4][0]}:{port}"


def service_config(service: str, idempotent_methods: Sequence[str]) -> str:
    """The JSON service config of a hop: spread over endpoints, skip the unhealthy, retry what is safe within a budget.

    No ``methodConfig.timeout``: grpcio fires it about a second early. Every call passes its own timeout instead.
    """
    retry: Mapping[str, Any] = {
        "maxAttempts": 3,
        "initialBackoff": "0.05s",
        "maxBackoff": "0.5s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    config: dict[str, Any] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": service},
        # A token is spent per failure and a tenth comes back per success: retries stay near 10 % of the load.
        "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
    }
    if idempotent_methods:
        names = [{"service": service, "method": method} for method in idempotent_methods]
        config["methodConfig"] = [{"name": names, "retryPolicy": retry}]
    return json.dumps(config)
