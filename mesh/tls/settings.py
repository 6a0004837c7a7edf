"""Where a process's certificates are, and who may call it."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from mesh.settings import MeshSettings
from mesh.tls.access import refuse_malformed


class TlsSettings(MeshSettings):
    """Settings of mutual TLS, the same for gateway, workers and programs, from variables that begin with MESH_TLS_."""

    model_config = SettingsConfigDict(env_prefix="MESH_TLS_")

    ca: Path | None = Field(
        None,
        description="PEM file of the authorities whose certificates are trusted, both as servers and as clients. Set "
        "with the next two it turns mutual TLS on, and plaintext off.",
    )
    certificate: Path | None = Field(
        None, description="PEM file of this process's own certificate, intermediate ones behind it."
    )
    key: Path | None = Field(None, description="PEM file of that certificate's private key, without a password.")
    server_names: dict[str, str] = Field(
        {},
        description="Names that the workers' certificates must carry, where that is not the host in the address, "
        'as JSON from a hop to a name, for example {"embedding": "embedding-services"}. Workers do not read it.',
    )
    allow: dict[str, tuple[str, ...]] = Field(
        {"gateway": ("*",), "client": ("*",)},
        description="Who may call a worker, as JSON from a name in the caller's certificate to what it may call: "
        '{"gateway": ["*"], "bulk": ["embedding.v1.EmbeddingService", "reranking.v1.RerankingService/Info"]}. '
        "Health is open to every certificate of the authorities.",
    )
    expiry_warning_days: float = Field(
        14.0, ge=0, le=3650, description="A certificate that ends within this many days is warned about in the log."
    )
    check_seconds: float = Field(
        1.0, gt=0, le=3600, description="How often the files are looked at; new ones are used without a restart."
    )

    @field_validator("allow")
    @classmethod
    def _well_formed(cls, allow: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        refuse_malformed(allow)
        return allow

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        named = [self.variable(each) for each in ("ca", "certificate", "key") if getattr(self, each) is not None]
        if named and len(named) < 3:
            raise ValueError(
                f"MESH_TLS_CA, MESH_TLS_CERTIFICATE and MESH_TLS_KEY belong together; only {' and '.join(named)} "
                f"{'are' if len(named) > 1 else 'is'} set"
            )
        return self

    @property
    def is_on(self) -> bool:
        """Whether certificates are named."""
        return self.ca is not None
