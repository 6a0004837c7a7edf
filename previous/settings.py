"""What the API process of before can be told: the configuration file that the migration replaced.

The keys are those of the migration guide's "before": ``gateway.embedding``, ``gateway.chunking.semantic_chunker``, and
``gpu`` beside or below ``gateway``; ``GPU_ENABLED`` stands above them. The mesh's own keys are refused by name: who
finds them here has not restored the copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from inference.models import DEFAULT_EMBEDDING_MODEL

DEFAULT_CONFIG = Path("config/gateway.yaml")
_OF_THE_MESH = frozenset({"services", "default_chunker", "chunkers"})


class ConfigurationError(Exception):
    """The configuration cannot be used; the message says what to change."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelSection(_Section):
    """One capability's model, and whether it may use the GPU."""

    gpu_enabled: bool = True
    model_name: str = DEFAULT_EMBEDDING_MODEL


class RerankingSection(_Section):
    """The reranker; an empty name means what `RerankingService` takes by itself."""

    gpu_enabled: bool = True
    model_name: str = ""


class ChunkingSection(_Section):
    """The one chunker of before."""

    semantic_chunker: ModelSection = ModelSection()


class GpuSection(_Section):
    """Which GPU there is to use."""

    enabled: bool = True
    device_id: int = Field(0, ge=0)


class PreviousSettings(_Section):
    """What ``gateway:`` held before."""

    chunking: ChunkingSection = ChunkingSection()
    embedding: ModelSection = ModelSection()
    reranking: RerankingSection = RerankingSection()
    gpu: GpuSection = GpuSection()

    @classmethod
    def load(cls, path: Path, environ: Mapping[str, str]) -> PreviousSettings:
        """Read the file; one that is not there means the defaults.

        Raises:
            ConfigurationError: it cannot be read, or holds other keys.
        """
        try:
            settings = cls.model_validate(_gateway_section(path))
            if "GPU_ENABLED" in environ:
                enabled = TypeAdapter(bool).validate_python(environ["GPU_ENABLED"])
                settings = settings.model_copy(update={"gpu": settings.gpu.model_copy(update={"enabled": enabled})})
        except ValidationError as error:
            raise ConfigurationError(_told(path, error)) from error
        return settings

    def device(self, *, gpu_enabled: bool) -> str:
        """A capability's device: the GPU where both switches are on and torch has it, otherwise the CPU."""
        if not (self.gpu.enabled and gpu_enabled):
            return "cpu"
        import torch

        return f"cuda:{self.gpu.device_id}" if torch.cuda.device_count() > self.gpu.device_id else "cpu"


def _gateway_section(path: Path) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read as YAML ({type(error).__name__}). Correct it.") from error
    if not isinstance(document, dict) or not isinstance(document.get("gateway") or {}, dict):
        raise ConfigurationError(f"{path} must hold a mapping with the key gateway.")
    # The guide prints the GPU's section at the top of the file.
    return {**{key: value for key, value in document.items() if key != "gateway"}, **(document.get("gateway") or {})}


def _told(path: Path, error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "GPU_ENABLED"
    if _OF_THE_MESH & set(where.split(".")):
        return (
            f"{path} is the mesh's configuration ({where}). Restore the copy that was made before the migration: "
            "cp config/gateway.yaml.backup config/gateway.yaml"
        )
    return f"{path}: {where}: {first['msg']}. Correct it, or leave it out."
