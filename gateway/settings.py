"""What the gateway can be told: ``config/gateway.yaml``, and the environment above it.

Precedence, strongest first: arguments of `GatewaySettings.load`, the variables without a prefix
(``EMBEDDING_SERVICE_URL``, ``ENABLE_VECTOR_CACHE``), ``GATEWAY_*`` variables (``GATEWAY_LIMITS__MAX_JSON_BYTES``
reaches into a section), the file that ``GATEWAY_CONFIG`` names, defaults.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gateway.keys.settings import KeysSettings
from gateway.setting_names import SERVICE_URL_VARIABLES, explain, refuse_misspelt_variables
from gateway.url_sources.settings import UrlSourceSettings
from gateway.vector_cache.settings import VECTOR_CACHE_VARIABLES, VectorCacheSettings
from mesh.channel import endpoints_of
from mesh.settings import MeshSettings, Names, SettingsError

DEFAULT_CONFIG = Path("config/gateway.yaml")
_MEBI = 1024 * 1024

PLAIN_VARIABLES: dict[str, tuple[str, ...]] = {
    **{variable: ("services", service, "url") for variable, service in SERVICE_URL_VARIABLES.items()},
    **{variable: ("vector_cache", name) for variable, name in VECTOR_CACHE_VARIABLES.items()},
}
"""All variables without the gateway's prefix, and the path of the setting that each one makes."""


def _target(text: str) -> str:
    """Endpoints as gRPC takes them, blanks removed; refuses what is meant for an HTTP client."""
    if any(not part.strip() for part in text.split(",")):
        raise ValueError(f"{text!r} holds an empty endpoint; write host:port, several separated by commas")
    return ",".join(endpoints_of(text))


Target = Annotated[str, AfterValidator(_target)]


class _Section(BaseModel):
    """A nested part of the file: frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ServiceSettings(_Section):
    """Where one service is reached."""

    url: Target = Field(description="host:port, several separated by commas, or dns:///name:port.")
    slow_call_seconds: float | None = Field(
        None, gt=0, le=3600, description="A longer call is slow; most calls slow open the breaker. Unset: none."
    )


class LlmServiceSettings(_Section):
    """Where language models are reached: by one hop, or by one for each model."""

    url: Target | None = Field(
        "127.0.0.1:50054",
        description="As for every service; asked for all models without a worker of their own. null: there are none.",
    )
    slow_call_seconds: float | None = Field(
        None, gt=0, le=3600, description="As for every service; it holds for each of the models too."
    )
    models: dict[str, ServiceSettings] = Field(
        default_factory=dict,
        description="Models with workers of their own, by the name that callers use: each has a url, and a hop.",
    )

    @model_validator(mode="after")
    def _reach_something(self) -> Self:
        if self.url is None and not self.models:
            raise ValueError("needs a url, or models with urls of their own")
        return self


class ServicesSettings(_Section):
    """Where the workers are reached."""

    gpu: ServiceSettings = Field(ServiceSettings(url="127.0.0.1:50053"), description="GPU status (GPU_SERVICE_URL).")
    embedding: ServiceSettings = Field(
        ServiceSettings(url="127.0.0.1:50051"), description="Embeddings (EMBEDDING_SERVICE_URL)."
    )
    reranking: ServiceSettings = Field(
        ServiceSettings(url="127.0.0.1:50052"), description="Reranking (RERANKING_SERVICE_URL)."
    )
    llm: LlmServiceSettings = Field(LlmServiceSettings(), description="Chat (LLM_SERVICE_URL).")
    chunking: ServiceSettings | None = Field(
        None, description="Chunking; unset means the gpu service's workers, which chunk too."
    )

    @property
    def chunking_url(self) -> str:
        """Where documents are chunked."""
        return self.chunking.url if self.chunking else self.gpu.url

    @property
    def chunking_slow_call_seconds(self) -> float | None:
        """Reading a document and reading a GPU take their own times, wherever both are done."""
        return self.chunking.slow_call_seconds if self.chunking else None


class BreakerSettings(_Section):
    """When the circuit breakers open, the same for every service and for every endpoint of one."""

    failure_threshold: int = Field(5, ge=1, le=10_000, description="Consecutive failures that open a breaker.")
    timeout_seconds: float = Field(
        60.0, gt=0, le=3600, description="Longest time that one stays open; it is far shorter at first."
    )
    failure_rate: float = Field(0.5, gt=0, le=1, description="Share of failures within the window that opens one.")
    minimum_calls: int = Field(20, ge=1, le=100_000, description="Fewer calls in the window say nothing about shares.")
    window_seconds: float = Field(10.0, gt=0, le=3600, description="How far back the shares look.")


class ChunkerSettings(_Section):
    """One chunker."""

    enabled: bool = Field(True, description="Whether /v1/chunk takes documents for it.")


class ChunkersSettings(_Section):
    """The chunkers that exist."""

    docling: ChunkerSettings = Field(ChunkerSettings(), description="Docling's chunkers, in the gpu-services worker.")


class ChunkingSettings(_Section):
    """How documents are cut."""

    default_chunker: Literal["docling", "docling-hybrid", "docling-hierarchical"] = Field(
        "docling", description="Used when a request names none; docling means docling-hybrid."
    )
    chunkers: ChunkersSettings = Field(ChunkersSettings(), description="Which chunkers are offered.")


class ModelsSettings(_Section):
    """Names of models."""

    aliases: dict[str, str] = Field(
        default_factory=dict, description="Further names for served models, for example text-embedding-3-small."
    )


class LimitsSettings(_Section):
    """What one request may ask. The workers have limits of their own, which hold as well."""

    max_json_bytes: int = Field(16 * _MEBI, ge=1024, le=1024 * _MEBI, description="Largest JSON body, in bytes.")
    max_upload_bytes: int = Field(256 * _MEBI, ge=1024, le=16384 * _MEBI, description="Largest upload, in bytes.")
    max_concurrent_requests: int = Field(
        2048, ge=1, le=1_000_000, description="Most requests in progress; further ones are refused at once with 429."
    )
    max_loop_delay_seconds: float = Field(
        0.02,
        gt=0,
        le=60,
        description="While the gateway itself is behind by more than this, most requests are refused with 429.",
    )
    max_inputs: int = Field(2048, ge=1, le=65536, description="Most texts in one embedding request.")
    max_documents: int = Field(10_000, ge=1, le=100_000, description="Most documents in one reranking request.")
    max_messages: int = Field(4096, ge=1, le=65536, description="Most messages in one chat request.")


class TimeoutsSettings(_Section):
    """How long a request may take where its client does not ask for less."""

    embedding_seconds: float = Field(60.0, gt=0, le=3600, description="For embeddings.")
    reranking_seconds: float = Field(60.0, gt=0, le=3600, description="For reranking.")
    chunking_seconds: float = Field(900.0, gt=0, le=86400, description="For one document, upload included.")
    llm_seconds: float = Field(600.0, gt=0, le=86400, description="For one answer of a language model.")
    gpu_seconds: float = Field(5.0, gt=0, le=60, description="For the GPUs' status.")
    body_seconds: float = Field(30.0, gt=0, le=3600, description="For a JSON body to arrive.")
    headers_seconds: float = Field(
        10.0, gt=0, le=600, description="For a request's headers to arrive, and for a new connection's first byte."
    )
    info_seconds: float = Field(1.5, gt=0, le=60, description="For asking a worker what it serves.")


class StreamsSettings(_Section):
    """How streamed answers are kept alive."""

    keep_alive_seconds: float = Field(15.0, gt=0, le=300, description="Longest silence before a comment is sent.")
    stalled_client_seconds: float = Field(
        60.0, gt=0, le=3600, description="A client that reads nothing for this long is given up."
    )


class VocabularySettings(_Section):
    """How token ids of OpenAI's vocabulary become text."""

    name: Literal["cl100k_base", "o200k_base"] = Field("cl100k_base", description="Vocabulary of incoming token ids.")
    directory: Path | None = Field(
        None, description="Folder with tiktoken's file, under its own or its cached name; else TIKTOKEN_CACHE_DIR."
    )


class GatewaySettings(MeshSettings):
    """All settings of the gateway."""

    model_config = SettingsConfigDict(
        env_prefix="GATEWAY_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        nested_model_default_partial_update=True,
    )

    config: Path | None = Field(None, description="The file to read; by default config/gateway.yaml where it exists.")
    host: str = Field("127.0.0.1", description="Address to listen on. Anything but loopback needs keys.")
    allowed_hosts: Names = Field(
        (),
        description="Names that the gateway answers to, or *.example.com, beside addresses, localhost and names "
        "without a dot. Empty: no others on a loopback address, every name elsewhere. *: every name.",
    )
    published_host: str = Field("", description="Where others reach a container's port, if not at host; decides as it.")
    port: int = Field(8000, ge=0, le=65535, description="HTTP port; 0 lets the system choose one.")
    log_format: Literal["text", "json"] = Field("text", description="Log lines for people (text) or machines (json).")
    drain_notice_seconds: float = Field(
        0.0,
        ge=0,
        le=60,
        description="How long the port stays open after SIGTERM, with /health/ready at 503. Behind a load balancer: "
        "what its health check needs to notice (interval times threshold, plus a second), for example 5.",
    )
    drain_grace_seconds: float = Field(
        10.0, ge=0, le=3600, description="Time that admitted requests get to finish after SIGTERM."
    )
    services: ServicesSettings = Field(ServicesSettings(), description="Where the workers are.")
    breaker: BreakerSettings = Field(BreakerSettings(), description="When circuit breakers open.")
    chunking: ChunkingSettings = Field(ChunkingSettings(), description="How documents are cut.")
    url_sources: UrlSourceSettings = Field(UrlSourceSettings(), description="Documents by URL.")
    models: ModelsSettings = Field(ModelsSettings(), description="Names of models.")
    limits: LimitsSettings = Field(LimitsSettings(), description="What one request may ask.")
    timeouts: TimeoutsSettings = Field(TimeoutsSettings(), description="How long a request may take.")
    streams: StreamsSettings = Field(StreamsSettings(), description="How streamed answers are kept alive.")
    vocabulary: VocabularySettings = Field(VocabularySettings(), description="How OpenAI's token ids are read.")
    vector_cache: VectorCacheSettings = Field(VectorCacheSettings(), description="Vectors that are kept.")
    keys: KeysSettings = Field(KeysSettings(), description="Who may ask.")

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """Read file and environment, ``overrides`` above both.

        Raises:
            SettingsError: a name is unknown, a value is out of bounds or the file cannot be read; for the operator.
        """
        refuse_misspelt_variables(cls, os.environ if environ is None else environ)
        try:
            return cls(**overrides)
        except ValidationError as error:
            raise SettingsError(explain(cls, error)) from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources, strongest first."""
        return init_settings, _PlainVariables(settings_cls), env_settings, _ConfigFile(settings_cls)


class _WholeSource(PydanticBaseSettingsSource):
    """A source that answers for all fields at once."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - unused hook
        """Unused: ``__call__`` answers."""
        return None, field_name, False


class _PlainVariables(_WholeSource):
    """The variables without a prefix."""

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for variable, (*sections, name) in PLAIN_VARIABLES.items():
            value = os.environ.get(variable, "").strip()
            if value:
                place = found
                for section in sections:
                    place = place.setdefault(section, {})
                place[name] = value
        return found


class _ConfigFile(_WholeSource):
    """The YAML file, without its outermost key ``gateway``."""

    def __call__(self) -> dict[str, Any]:
        named = os.environ.get("GATEWAY_CONFIG", "").strip()
        path = Path(named) if named else DEFAULT_CONFIG
        if not named and not path.exists():
            return {}
        return read_config(path)


def read_config(path: Path) -> dict[str, Any]:
    """The mapping under ``gateway:`` in a YAML file.

    Raises:
        SettingsError: the file is missing, is not YAML, or holds other keys.
    """
    import yaml  # 15 ms that a start without a file need not spend

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"The configuration {path} cannot be read: {type(error).__name__}. Check GATEWAY_CONFIG."
        ) from error
    except yaml.YAMLError as error:
        raise SettingsError(f"The configuration {path} is not YAML: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict) or set(document) - {"gateway"}:
        strange = sorted(str(key) for key in document if key != "gateway") if isinstance(document, dict) else []
        raise SettingsError(f"{path} must hold one key, gateway; it holds {', '.join(strange) or 'no mapping'}.")
    inner = document["gateway"]
    if inner is not None and not isinstance(inner, dict):
        raise SettingsError(f"{path}: gateway must be a mapping of settings.")
    return inner or {}
