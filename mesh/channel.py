"""Channel and server options, and the places that a target names: everything that is told to gRPC's core.

The core connects, reconnects, and finds frozen peers. Choosing an endpoint and trying another one are the hop's own
(`mesh.balancing`): the core's outlier detection counts a client's cancel or bad request as the peer's failure.

The numbers belong together. A client that pings faster than the server allows is sent away ("Too many pings"), and
keepalive without ``ping_timeout`` finds a frozen peer only after a minute.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.settings import SettingsError

Target = str | Sequence[str]
"""One endpoint ("host:port"), several ("a:1,b:2" or a sequence), or a name with several addresses ("dns:///name:port")."""

Option = tuple[str, int | str]

CLIENT_OPTIONS: tuple[Option, ...] = (
    # A frozen peer is found after both together: 7 s.
    ("grpc.keepalive_time_ms", 4_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # A worker that serves again is used within a second: this, its jitter of a fifth, and the probe's next try.
    ("grpc.max_reconnect_backoff_ms", 500),
    # How long one attempt to connect may take: after a partition has healed, the next attempt is this near.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    # Each hop keeps its own connections; the core would share them between equal channels of one process.
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy meant for the internet must not carry the hop.
    ("grpc.enable_http_proxy", 0),
)

SERVER_OPTIONS: tuple[Option, ...] = (
    # Less than the clients' 4 s, so that their pings are always welcome. (The core's header calls this constant
    # MIN_RECV_PING_INTERVAL…; its value has no "recv", and a name that the core does not know is silently ignored.)
    ("grpc.http2.min_ping_interval_without_data_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    # Connections end after a while, so that clients look names up again and spread over new endpoints.
    # No max_connection_age_grace: it would cut every longer stream, and health watches with them. What is under way
    # stays on the old connection until it is done.
    ("grpc.max_connection_age_ms", 300_000),
    # The second one is where refusing is certain; from the first on, it would be more and more likely.
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    # About as many as a hop has in flight at most, and what brings in the core's guard against floods of resets: calls
    # that were reset count until they are forgotten. Without it a flood on one connection cancels everybody's calls.
    ("grpc.max_concurrent_streams", 1_000),
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
    if endpoint.startswith("dns:") and not endpoint.startswith("dns:///"):
        raise SettingsError(f"{endpoint} names a resolver; write dns:///name:port, for the system's own.")
    host, _, port = endpoint.removeprefix("dns:///").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingsError(f"{endpoint} names no host or no port: write host:port, for example 127.0.0.1:50051.")


@dataclass(frozen=True, slots=True)
class Place:
    """An endpoint as it was written, and what it means.

    Attributes:
        written: as the caller wrote it.
        address: what gRPC's core connects to, for example ``ipv4:10.0.0.7:50051``; empty for a name.
        host: the name to look up; empty for an address.
        port: of the name.
    """

    written: str
    address: str = ""
    host: str = ""
    port: int = 0


def place_of(endpoint: str) -> Place:
    """What an endpoint means: an address as it is, or a name that has to be looked up, again and again."""
    if endpoint.startswith(("ipv4:", "ipv6:", "unix:")):
        return Place(endpoint, address=endpoint)
    host, _, port = endpoint.removeprefix("dns:///").rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    try:
        return Place(endpoint, address=address_of(bare, int(port)))
    except ValueError:
        return Place(endpoint, host=bare, port=int(port))


def address_of(ip: str, port: int) -> str:
    """An IP address and a port as gRPC's core takes them. Raises ValueError where ``ip`` is none."""
    if ipaddress.ip_address(ip).version == 6:
        return f"ipv6:[{ip}]:{port}"
    return f"ipv4:{ip}:{port}"
