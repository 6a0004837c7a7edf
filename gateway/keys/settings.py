"""What the gateway can be told about keys: the section ``keys`` of its settings."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from gateway.keys.records import Limits

_MOST = 1_000_000_000_000


class KeyLimitsSettings(BaseModel):
    """How much each key may ask that states no limits of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: int | None = Field(
        None, ge=1, le=_MOST, description="Requests; that many at once, then evenly. Unset: no limit."
    )
    tokens_per_minute: int | None = Field(
        None, ge=1, le=_MOST, description="Tokens, read and written. Unset: no limit."
    )
    max_concurrent_requests: int | None = Field(
        None, ge=1, le=_MOST, description="Requests in progress. Unset: no limit."
    )
    max_body_bytes: int | None = Field(
        None, ge=1, le=_MOST, description="Largest body, uploads too, in bytes. Unset: as for everybody."
    )

    def as_limits(self) -> Limits:
        """The same for the domain."""
        return Limits(**self.model_dump())


class KeysSettings(BaseModel):
    """Who may ask."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    file: Path | None = Field(
        None, description="The file of keys that ./scripts/keys.sh makes. Unset: no key is asked for."
    )
    open_to_anyone: bool = Field(
        False,
        description="Start without keys on an address beyond loopback too: whoever reaches the port may use the mesh.",
    )
    limits: KeyLimitsSettings = Field(
        KeyLimitsSettings(), description="How much each key may ask that states no limits of its own."
    )
    limits_in: Literal["memory", "redis"] = Field(
        "memory",
        description="Where limits are counted: in each gateway's memory, or in a Redis that several gateways share. "
        "Redis needs the extra `redis`.",
    )
    redis_url: SecretStr | None = Field(
        None, description="That Redis: redis://, rediss:// or unix://. Unset: the vector cache's (REDIS_URL)."
    )
    redis_timeout_seconds: float = Field(
        0.05, gt=0, le=10, description="What Redis may take to let a request in; after it, each gateway counts alone."
    )

    def missing_at(self, host: str) -> str:
        """What is to be done before the gateway may listen on ``host``; empty where nothing is."""
        if self.file is not None or self.open_to_anyone or is_loopback(host):
            return ""
        return (
            f"The address {host or 'of all interfaces'} is reached by others than this machine, and there are no keys. "
            "Make one with ./scripts/keys.sh add --tenant NAME and set GATEWAY_KEYS__FILE; or, in a network where "
            "everybody may use the mesh, set GATEWAY_KEYS__OPEN_TO_ANYONE=true; or listen on 127.0.0.1."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. A name other than localhost may lead anywhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
