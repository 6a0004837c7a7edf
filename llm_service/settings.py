"""What the LLM worker can be told, by ``LLM_…`` variables."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from mesh.settings import Names, WorkerSettings


class LlmSettings(WorkerSettings):
    """Settings of the LLM worker."""

    model_config = SettingsConfigDict(env_prefix="LLM_", populate_by_name=True)

    port: int = Field(50054, ge=0, le=65535, description="gRPC port; 0 lets the system choose one.")
    default_deadline_seconds: float = Field(
        300.0, gt=0, le=3600, description="Deadline of a call that came without one."
    )

    model: str = Field(
        "demo",
        min_length=1,
        description="demo, a directory with a Hugging Face model, or a name on the hub such as owner/model. With "
        "LLM_ENGINE=openai, the name of a model that the engine serves; with LLM_ENGINE=llamacpp, a GGUF file below "
        "LOCAL_MODELS_PATH, which need not be named where it is the only one.",
    )
    model_revision: str = Field("", description="Commit, branch or tag on the hub; empty means its default branch.")
    served_model_name: str = Field("", description="The name that callers use; empty means the model's own.")
    model_aliases: Names = Field((), description="Further names that clients may use, separated by commas.")

    engine: Literal["transformers", "vllm", "llamacpp", "openai"] = Field(
        "transformers",
        description="transformers: the worker runs `transformers serve`. vllm: it runs vLLM, for many requests at "
        "once. llamacpp: it runs llama.cpp's server on a GGUF file. openai: any OpenAI-compatible server at "
        "LLM_ENGINE_URL.",
    )
    engine_url: str = Field("", description="Base URL with its /v1, for LLM_ENGINE=openai.")
    engine_api_key: SecretStr = Field(SecretStr(""), description="Bearer token for LLM_ENGINE=openai.")
    engine_python: str = Field(
        "", description="Python of the environment that holds the engine; empty means the worker's own."
    )
    engine_arguments: str = Field(
        "",
        description="Further arguments for vLLM or llama.cpp's server as a shell would read them, for example "
        "--tensor-parallel-size 2 --enable-auto-tool-choice --tool-call-parser hermes. They stand above the worker's "
        "own.",
    )
    kv_cache_gib: float = Field(
        0.0,
        ge=0,
        le=10_000,
        description="Memory for vLLM's key-value cache in GiB; 0 means 1 on a CPU, and on CUDA what the weights leave "
        "of the memory that vLLM takes.",
    )
    local_models_path: Path | None = Field(
        None,
        validation_alias="LOCAL_MODELS_PATH",
        description="Folder of GGUF files, for LLM_ENGINE=llamacpp; by default MESH_MODELS.",
    )
    local_model_gpu_layers: int = Field(
        -1,
        ge=-1,
        le=10_000,
        validation_alias="LOCAL_MODEL_GPU_LAYERS",
        description="Layers that llama.cpp puts on the GPU; -1 means all. Without a GPU, or a build for it, none are.",
    )
    device: str = Field("auto", description="Device for the engine: auto, cpu, cuda, cuda:0, …")
    dtype: str = Field("auto", description="Number format of the weights: auto, float32, bfloat16, float16.")

    context_tokens: int = Field(
        0,
        ge=0,
        description="Longest prompt and answer together, in tokens; 0 means what the model says, with "
        "LLM_ENGINE=llamacpp at most 8192.",
    )
    max_output_tokens: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="Most tokens that one request may ask for, and what it gets unless it asks.",
    )
    max_concurrent_requests: int = Field(
        0,
        ge=0,
        le=4096,
        description="Requests at the engine at once, each of several answers to one prompt counted; 0 means what the "
        "engine does well (transformers 1, llamacpp 1, openai 32, vllm 256).",
    )
    max_queued_requests: int = Field(64, ge=0, le=100_000, description="Requests that may wait; more are refused.")

    start_timeout_seconds: float = Field(
        600.0, gt=0, le=86_400, description="How long the engine may take to load the model and write its first token."
    )
    stall_seconds: float = Field(
        120.0, gt=0, le=3600, description="An engine that sends nothing for so long while it writes is restarted."
    )
    hang_seconds: float = Field(
        6.0,
        gt=0,
        le=3600,
        description="An engine that owes an answer and uses no processor time for so long hangs and is restarted. A "
        "long prompt is silent too, and computes.",
    )
    canary_interval_seconds: float = Field(
        4.0, gt=0, le=3600, description="An idle engine proves itself by writing one token this often."
    )

    mesh_home: Path = Field(
        Path("var"), validation_alias="MESH_HOME", description="Where local state lives (MESH_HOME)."
    )
    mesh_models: Path | None = Field(
        None,
        validation_alias="MESH_MODELS",
        description="Where models made on this machine live (MESH_MODELS); by default models below MESH_HOME.",
    )

    @property
    def demo_path(self) -> Path:
        """Where `ops/demo_llm/train.py` puts the demo model."""
        return self._models / "demo-llm"

    @property
    def gguf_folder(self) -> Path:
        """Where GGUF files are looked for."""
        return self.local_models_path or self._models

    @property
    def _models(self) -> Path:
        return self.mesh_models or self.mesh_home / "models"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.engine == "openai" and not self.engine_url.startswith(("http://", "https://")):
            raise ValueError("LLM_ENGINE=openai needs LLM_ENGINE_URL, for example http://127.0.0.1:8080/v1")
        try:
            shlex.split(self.engine_arguments)
        except ValueError:
            raise ValueError("LLM_ENGINE_ARGUMENTS has a quotation mark that is never closed.") from None
        return self
