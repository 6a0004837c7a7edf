"""Where the model comes from: the demo model by its name, a local path, the hub's cache, then the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import ModelUnusable
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

DEMO = "demo"
DEMO_NAME = "torch-isolation-mesh-demo"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "README.md")
_ETAG_SECONDS = 6.0


@dataclass(frozen=True)
class Located:
    """A model's files on this machine.

    Attributes:
        path: the directory.
        name: what callers call it unless the settings say otherwise.
        source: demo, path, hub-cache or hub.
        revision: the hub's commit; empty for local files.
    """

    path: Path
    name: str
    source: str
    revision: str = ""


def locate(model: str, revision: str, *, demo_path: Path) -> Located:
    """Find ``model``, downloading it as the last resort. Blocks: call it on a thread.

    Raises:
        ModelUnusable: it is nowhere; the message says what to do.
    """
    if model == DEMO:
        if not demo_path.is_dir():
            raise ModelUnusable(
                "The demo model is not there yet. Run `python ops/demo_llm/train.py`, or name a model with LLM_MODEL.",
                reason="MODEL_NOT_FOUND",
            )
        return Located(demo_path.resolve(), DEMO_NAME, "demo")
    path = Path(model).expanduser()
    if path.is_dir():
        return Located(path.resolve(), path.resolve().name, "path")
    if model.startswith(("/", ".", "~")) or not _HUB_NAME.fullmatch(model):
        raise ModelUnusable(
            "LLM_MODEL is neither a directory on this machine nor a Hugging Face name such as owner/model.",
            reason="MODEL_NOT_FOUND",
        )
    return _from_hub(model, revision)


def _from_hub(model: str, revision: str) -> Located:
    # Imported here: it costs start-up time that a local model need not pay.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def snapshot(*, local_files_only: bool) -> Path:
        return Path(
            snapshot_download(
                model,
                revision=revision or None,
                allow_patterns=list(_WANTED),
                local_files_only=local_files_only,
                etag_timeout=_ETAG_SECONDS,
            )
        )

    try:
        path = snapshot(local_files_only=True)
        if any(path.glob("*.safetensors")):
            return Located(path, model, "hub-cache", path.name)
    except LocalEntryNotFoundError:
        pass
    log.info("fetching the model from the hub", extra=fields(model=model, revision=revision or "default"))
    try:
        path = snapshot(local_files_only=False)
    except GatedRepoError:
        raise _unusable(f"{model} is gated: accept its terms on the hub and set HF_TOKEN.") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise _unusable(f"The hub has no model {model} at revision {revision or 'main'}.") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        log.warning("the hub cannot be used", extra=fields(model=model, error=repr(error)))
        raise _unusable(
            f"{model} is not on this machine and the hub cannot be reached; set LLM_MODEL to a local path, or to demo."
        ) from None
    return Located(path, model, "hub", path.name)


def _unusable(message: str) -> ModelUnusable:
    return ModelUnusable(message, reason="MODEL_NOT_FOUND")
