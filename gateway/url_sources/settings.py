"""Whether documents may be named by a URL, and which ones."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from mesh.settings import Names


def _network(text: str) -> str:
    """The network as it is usually written; ValueError where it is none, which is what pydantic wants."""
    return str(ipaddress.ip_network(text))


Networks = Annotated[Names, AfterValidator(lambda texts: tuple(map(_network, texts)))]


class UrlSourceSettings(BaseModel):
    """Documents by URL in ``/v1/chunk``. Off: the gateway would ask for them from inside your network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(False, description="Whether /v1/chunk fetches documents that a request names by a URL.")
    schemes: tuple[Literal["https", "http"], ...] = Field(
        ("https",), min_length=1, description="Schemes that a URL may have."
    )
    ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = Field(
        (80, 443), min_length=1, description="Ports that a URL may name."
    )
    allowed_hosts: Names = Field(
        (),
        description="The only hosts that are asked, by name, or *.example.com for all below one. Empty: every host "
        "with a public address.",
    )
    allowed_networks: Networks = Field(
        (), description="Networks that are asked although they are not public, for example 10.20.0.0/16."
    )
    max_bytes: int = Field(64 * 1024 * 1024, ge=1024, le=16384 * 1024 * 1024, description="Largest document, in bytes.")
    seconds: float = Field(30.0, gt=0, le=3600, description="Longest time that a URL's server is waited for, in all.")
    max_redirects: int = Field(3, ge=0, le=20, description="Most redirects that are followed; each one is checked.")
    max_fetches: int = Field(16, ge=1, le=10_000, description="Most documents that are being fetched at once.")

    @field_validator("allowed_hosts")
    @classmethod
    def _names_alone(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if any("/" in host or ":" in host for host in hosts):
            raise ValueError("holds names of hosts, without scheme, port or path")
        return tuple(host.lower().removesuffix(".") for host in hosts)
