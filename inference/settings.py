"""What every worker that runs one model through ``inference`` can be told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from inference.engines.choice import EnginePlan
from inference.loading import default_models_dir
from mesh.settings import Names, WorkerSettings


class ModelWorkerSettings(WorkerSettings):
    """Model, engine and queue. A worker's own settings add its prefix, its default model and its limits."""

    model_revision: str = Field("", description="Hub commit, branch or tag; empty means the pinned commit, or main.")
    model_sha256: str = Field("", description="Expected sha256 of the weights; empty checks the default model only.")
    served_model_name: str = Field("", description="Name that clients use; empty means the hub's or the directory's.")
    model_aliases: Names = Field((), description="Further names that clients may use, separated by commas.")
    model_profile: Path | None = Field(
        None, description="A TOML or JSON file that states how the model is used: docs/models.md shows what it holds."
    )
    models_dir: Path | None = Field(
        None,
        description="Where graphs and engine choices are kept; unset means $MESH_MODELS, or $MESH_HOME/models.",
    )
    onnx_dir: Path = Field(
        Path("models/onnx"),
        description="Where scripts/onnx_export.py put exported models; one of the same weights is a candidate.",
    )
    engine: str = Field(
        "auto",
        description="auto chooses the fastest faithful one; amx-bf16, amx-bf16x3, onnxruntime, onnxruntime-int8 (an "
        "export), torch, torch-bf16 or torch-fp16 pins it.",
    )
    device: str = Field("auto", description="auto, cpu or cuda:0.")
    threads: int = Field(
        0, ge=0, le=1024, description="Threads of one operator on CPU; 0 means all CPUs of the process."
    )
    min_cosine: float = Field(
        0.999, ge=0, le=1, description="Smallest cosine to float32 that auto calls faithful, over the check texts."
    )
    max_input_tokens: int = Field(
        0, ge=0, description="Read at most this many tokens of an input; 0 means the model's."
    )
    max_tokens_per_request: int = Field(300_000, ge=1, description="Most tokens in one request, after truncation.")
    max_queued_tokens: int = Field(600_000, ge=1, description="Tokens that may wait; over it requests are refused.")
    max_batch_tokens: int = Field(
        0, ge=0, description="Token budget of one batch, padding included; 0 means what the engine was fastest with."
    )

    # An engine that hangs is found within 10 s also on a busy machine: at work by the first, idle by the sum of the
    # second and the third.
    watchdog_seconds: float = Field(
        7.0,
        gt=0,
        le=3600,
        description="An engine without progress for longer than this is given up: the process exits.",
    )
    canary_interval_seconds: float = Field(
        4.0, gt=0, le=3600, description="An idle capability proves itself by one real inference this often."
    )
    canary_seconds: float = Field(
        4.0,
        ge=0,
        le=3600,
        description="An engine that takes longer for this inference is given up: the process exits. 0 means the "
        "watchdog's limit.",
    )
    canary_retry_seconds: float = Field(
        1.0,
        gt=0,
        le=3600,
        description="Pause after a failed canary, until the next one. Three in a row are the end: the process exits.",
    )

    @property
    def engine_plan(self) -> EnginePlan:
        """The wishes for the engine."""
        return EnginePlan(
            models_dir=self.models_dir or default_models_dir(os.environ),
            engine=self.engine,
            device=self.device,
            threads=self.threads,
            min_cosine=self.min_cosine,
            onnx_dir=self.onnx_dir,
        )

    @model_validator(mode="after")
    def _queue_holds_a_request(self) -> Self:
        if self.max_queued_tokens < self.max_tokens_per_request:
            raise ValueError("max_queued_tokens must be at least max_tokens_per_request, or large requests never run")
        return self
