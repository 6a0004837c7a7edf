"""The services in the Compose file, and what of this machine's environment reaches which of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ops.local.layout import CHECKOUT
from ops.local.topology import GATEWAY, MODEL_VARIABLES

FOLDER = CHECKOUT / "ops" / "docker"
BASE_FILE = FOLDER / "docker-compose.torch-isolation.yml"
GPU_FILE = FOLDER / "docker-compose.gpu.yml"
TLS_FILE = FOLDER / "docker-compose.tls.yml"
CERTIFICATES = "MESH_CERTIFICATES"
"""Names a folder with a folder for each service, which holds its certificate."""
KEYS = "GATEWAY_KEYS__FILE"
PROJECT = "torch-isolation-mesh"
MODELS = "models"


@dataclass(frozen=True)
class Service:
    """A service of the Compose file. Container and image are called as it is.

    Attributes:
        process: its name in local mode.
        settings: matches the variables that it reads.
    """

    name: str
    process: str
    settings: str


SERVICES = (
    Service("gpu-services", "gpu-services", r"GPU_SERVICES_\w+"),
    Service("embedding-services", "embedding", r"EMBEDDING_\w+"),
    Service("reranking-services", "reranking", r"RERANKING_\w+"),
    Service("llm-services", "llm", r"LLM_\w+|LOCAL_MODEL\w+"),
    Service(
        "gateway",
        GATEWAY,
        r"GATEWAY_\w+|VECTOR_CACHE_\w+|ENABLE_VECTOR_\w+|REDIS_\w+|MAX_VECTOR_\w+|TIKTOKEN_CACHE_DIR",
    ),
)
"""In start order."""

# Where a container listens, and where the others are, stands in the Compose file.
_SET_THERE = re.compile(r"\w+_(HOST|PORT|METRICS_PORT|SERVICE_URL)|LLM_ENGINE_PYTHON|GATEWAY_CONFIG")
_EVERYWHERE = r"OTEL_\w+|MESH_TLS_(ALLOW|CHECK_SECONDS|EXPIRY_WARNING_DAYS|SERVER_NAMES)"
_OF_THE_HUB = r"HF_(?!HOME|HUB_CACHE)\w+|(?i:https?_proxy|no_proxy|all_proxy)"


def handed_on(environ: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """Per service, what Compose adds to it: variables by name alone, and folders, for reading.

    The folders hold models, keys and certificates, and are mounted where they are here. The values stay in the
    environment: no file holds a secret.
    """
    additions: dict[str, dict[str, object]] = {}
    filling = "|".join(service.settings for service in SERVICES if service.name != GATEWAY)
    for name, settings in (
        *((each.name, f"{each.settings}|{_EVERYWHERE}") for each in SERVICES),
        (MODELS, f"{filling}|{_OF_THE_HUB}"),
    ):
        pattern = re.compile(settings)
        variables = [each for each in sorted(environ) if pattern.fullmatch(each) and not _SET_THERE.fullmatch(each)]
        folders = sorted({environ[each] for each in variables if each in MODEL_VARIABLES and _is_folder(environ[each])})
        folders += [str(Path(environ[each]).parent) for each in variables if each == KEYS and _is_file(environ[each])]
        addition: dict[str, object] = {}
        if variables:
            addition["environment"] = dict.fromkeys(variables)
        if folders:
            addition["volumes"] = [f"{folder}:{folder}:ro" for folder in folders]
        if addition:
            additions[name] = addition
    return additions


def write_additions(path: Path, environ: Mapping[str, str]) -> Path:
    """The file that hands them on; JSON, which is YAML too. Returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file without services is refused by one version of Compose, one with an empty service by the other.
    services = handed_on(environ) or {GATEWAY: {"environment": {}}}
    path.write_text(json.dumps({"services": services}, indent=2) + "\n", encoding="utf-8")
    return path


def _is_folder(value: str) -> bool:
    return Path(value).is_absolute() and Path(value).is_dir()


def _is_file(value: str) -> bool:
    return Path(value).is_absolute() and Path(value).is_file()
