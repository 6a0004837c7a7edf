"""Whose certificates there are, and where. Free of cryptography: the start script runs without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CLIENT = "client"
"""For programs and people that call the workers directly."""

CERTIFICATE_OF = {
    "gateway": "gateway",
    "gpu-services": "gpu-services",
    "embedding": "embedding-services",
    "reranking": "reranking-services",
    "llm": "llm-services",
}
"""The name in a process's certificate, which is its container's, by the process's name in local mode."""

PROCESSES = (*CERTIFICATE_OF.values(), CLIENT)


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """The files in a folder of certificates."""

    folder: Path

    @property
    def ca(self) -> Path:
        """The authority's certificate: everybody's MESH_TLS_CA."""
        return self.folder / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """What signs. No process of the mesh reads it."""
        return self.folder / "ca.key"

    def certificate(self, name: str) -> Path:
        """The certificate of that name."""
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        """Its private key."""
        return self.folder / f"{name}.key"

    def variables(self, name: str) -> Mapping[str, str]:
        """What the process of that name is told, to use its certificate."""
        return {
            "MESH_TLS_CA": str(self.ca),
            "MESH_TLS_CERTIFICATE": str(self.certificate(name)),
            "MESH_TLS_KEY": str(self.key(name)),
        }
