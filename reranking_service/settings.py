"""What the reranking worker can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from inference.models import DEFAULT_CROSS_ENCODER, DEFAULT_EMBEDDING_MODEL
from inference.settings import ModelWorkerSettings


class RerankingSettings(ModelWorkerSettings):
    """Settings of ``python -m reranking_service``, from variables that begin with ``RERANKING_``."""

    model_config = SettingsConfigDict(env_prefix="RERANKING_")

    port: int = Field(50052, ge=0, le=65535, description="gRPC port; 0 lets the system choose one.")
    model: str = Field(
        "",
        description=f"The model: a directory, or a hub name. Empty means {DEFAULT_CROSS_ENCODER} where it is on this "
        f"machine or the hub can be reached, otherwise late interaction over {DEFAULT_EMBEDDING_MODEL}.",
    )
    method: Literal["auto", "late-interaction", "cross-encoder", "generative"] = Field(
        "auto",
        description="How documents are scored. auto means cross-encoder or generative for a model that is named, as "
        f"its architecture says, except for {DEFAULT_EMBEDDING_MODEL}; late-interaction makes a reranker of any text "
        "encoder.",
    )
    instruction: str = Field(
        "",
        description="What a language model that reranks is told to look for; empty means what its profile says.",
    )
    max_documents_per_request: int = Field(1000, ge=1, le=65536, description="Most documents in one request.")
    max_tokens_per_request: int = Field(
        600_000,
        ge=1,
        description="Most tokens in one request, after truncation; a cross-encoder reads the query anew "
        "with each document, and that counts.",
    )
    max_queued_tokens: int = Field(1_200_000, ge=1, description="Tokens that may wait; over it requests are refused.")
