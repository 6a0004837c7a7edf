"""Variables that no settings model holds: those of the scripts, and those of libraries that the processes use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable, what holds without it, and what it does."""

    name: str
    default: str
    description: str


LOCAL_VARIABLES = (
    Variable("MESH_HOME", "var", "Where local state lives: environments, models, logs, the running mesh's record."),
    Variable("MESH_ENVS", "$MESH_HOME/envs", "Where the Python environments are; several meshes may share them."),
    Variable(
        "MESH_MODELS",
        "$MESH_HOME/models",
        "Where exported graphs, engine choices and the demo model are; several meshes may share them.",
    ),
    Variable("MESH_PYTHON", "", "The interpreter that makes the environments; by default the first suitable on PATH."),
    Variable(
        "MESH_TORCH_INDEX_URL",
        "",
        "Package index to take torch from, for example https://download.pytorch.org/whl/cpu; also --torch-index-url.",
    ),
    Variable(
        "MESH_API_KEY",
        "",
        "A key with the role operator, for the start, health and benchmark scripts where the gateway asks for one; the "
        "benchmark's needs the role inference too.",
    ),
    Variable("MESH_CHAOS_FULL", "", "1 has scripts/chaos.sh hurt the mesh for as long as the promises speak of."),
    Variable("MESH_CHAOS_REPORT", "", "A file to which scripts/chaos.sh writes what it measured, as JSON."),
)

LIBRARY_VARIABLES = (
    Variable("HF_HOME, HF_HUB_CACHE", "~/.cache/huggingface", "Where the model hub's client keeps what it fetched."),
    Variable("HF_HUB_OFFLINE", "", "1 keeps the workers from asking the hub: what is not cached is refused at once."),
    Variable("HF_TOKEN", "", "Credentials for gated models on the hub. The LLM worker does not pass it to its engine."),
    Variable(
        "TIKTOKEN_CACHE_DIR",
        "",
        "Folder of OpenAI's vocabulary file, unless GATEWAY_VOCABULARY__DIRECTORY is set.",
    ),
    Variable(
        "OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_…",
        "",
        "Where OpenTelemetry's spans go; traces are off where it is unset. All of its variables: [traces](tracing.md).",
    ),
    Variable("PIP_INDEX_URL, …", "", "pip's own settings hold for what the start script installs too."),
)
