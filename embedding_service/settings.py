"""What the embedding worker can be told."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from inference.models import DEFAULT_EMBEDDING_MODEL
from inference.settings import ModelWorkerSettings


class EmbeddingSettings(ModelWorkerSettings):
    """Settings of ``python -m embedding_service``, from variables that begin with ``EMBEDDING_``."""

    model_config = SettingsConfigDict(env_prefix="EMBEDDING_")

    port: int = Field(50051, ge=0, le=65535, description="gRPC port; 0 lets the system choose one.")
    model: str = Field(
        DEFAULT_EMBEDDING_MODEL, description="The model: a directory, or a hub name. Safetensors weights only."
    )
    prompts: dict[str, str] = Field(
        {},
        description='Prefixes by name, as JSON: {"query": "query: ", "document": "passage: "}. They stand above what '
        "the model's files and its profile say; an empty one takes a prefix away.",
    )
    dimensions: list[int] = Field(
        [],
        description="Dimensions that a request may ask for, as JSON: [256, 128]. Only for models trained to be cut "
        "(Matryoshka); empty means what the model itself states.",
    )
    max_inputs_per_request: int = Field(2048, ge=1, le=65536, description="Most inputs in one request.")
    max_stream_requests: int = Field(8, ge=1, le=1024, description="Requests of one EmbedStream computed at a time.")
