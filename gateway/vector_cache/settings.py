"""What the vector cache can be told: the section ``vector_cache`` of the gateway's settings."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

_MEBI = 1024 * 1024
_SCHEMES = ("redis://", "rediss://", "unix://")

VECTOR_CACHE_VARIABLES = {
    "ENABLE_VECTOR_CACHE": "enabled",
    "VECTOR_CACHE_TYPE": "type",
    "VECTOR_CACHE_TTL_SECONDS": "ttl_seconds",
    "VECTOR_CACHE_MAX_BYTES": "max_bytes",
    "REDIS_URL": "redis_url",
}
"""Variables without the gateway's prefix, and the setting that each one makes."""


class VectorCacheSettings(BaseModel):
    """Vectors that are kept, so that a text is computed once."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    enabled: bool = Field(False, description="Whether vectors are kept and given again (ENABLE_VECTOR_CACHE).")
    type: Literal["memory", "redis"] = Field(
        "memory",
        description="Where: in the gateway's own memory, or in a Redis that several gateways share and that outlives "
        "them (VECTOR_CACHE_TYPE). Redis needs the extra `redis`.",
    )
    ttl_seconds: int = Field(
        86_400, ge=1, le=365 * 86_400, description="How long a vector is kept (VECTOR_CACHE_TTL_SECONDS)."
    )
    max_bytes: int = Field(
        256 * _MEBI,
        ge=_MEBI,
        le=1024 * 1024 * _MEBI,
        description="Memory for vectors; over it, those not asked for longest go (VECTOR_CACHE_MAX_BYTES). A Redis has "
        "its own `maxmemory`.",
    )
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="redis://, rediss:// or unix:// (REDIS_URL). Looked at with the type redis only.",
    )
    redis_timeout_seconds: float = Field(
        0.05,
        gt=0,
        le=10,
        description="What an operation on Redis may take, for up to 128 texts; after it, vectors are computed. A Redis "
        "that fails again and again is left alone for a while.",
    )

    @model_validator(mode="after")
    def _url_is_redis(self) -> Self:
        # Only where it is used: other programs have a REDIS_URL too.
        if self.enabled and self.type == "redis" and not self.redis_url.get_secret_value().startswith(_SCHEMES):
            raise ValueError(f"redis_url (REDIS_URL) must begin with one of {', '.join(_SCHEMES)}")
        return self
