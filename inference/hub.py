"""The model hub and its local cache. An unreachable hub fails in seconds, and never when the cache suffices."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mesh.errors import ModelUnusable

PROBE_SECONDS = 6.0
"""How long the hub may take to say whether it has a model. A blackholed network gives no earlier sign."""

REACH_SECONDS = 1.5
"""How long a connection to the hub may take before it counts as out of reach."""

_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
_REPOSITORY_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
_OTHER_FORMATS = ["onnx/*", "openvino/*", "*.onnx", "original/*"]


def cached_snapshot(name: str, revision: str) -> Path | None:
    """The cache's directory for this commit, branch or tag, or None. No network, no lock, no import of the client.

    The layout read here is the documented one: ``models--<owner>--<name>/{refs/<branch>,snapshots/<commit>}``.
    """
    repository = _cache_root() / f"models--{name.replace('/', '--')}"
    reference = repository / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    snapshot = repository / "snapshots" / commit
    return snapshot if _is_whole(snapshot) else None


def _is_whole(snapshot: Path) -> bool:
    """Whether a download was not cut off: the client adds files one by one, in any order."""
    index = snapshot / "model.safetensors.index.json"
    weights = {"model.safetensors"}
    if index.is_file():
        try:
            weights = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError):
            return False
    return all((snapshot / name).is_file() for name in ("config.json", "tokenizer.json", *weights))


def fetch_snapshot(name: str, revision: str, *, setting: str) -> Path:
    """Download configuration, tokenizer and safetensors weights into the hub's cache.

    Raises:
        ModelUnusable: offline, unreachable, no such model or revision, gated, or without safetensors weights.
    """
    if _told_to_stay_offline():
        raise ModelUnusable(
            f"{name} is not on this machine, and HF_HUB_OFFLINE forbids asking the hub. "
            f"Put a directory into {setting}, or unset HF_HUB_OFFLINE once.",
            reason="MODEL_NOT_FOUND",
        )
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        found = _within(PROBE_SECONDS, lambda: HfApi().model_info(name, revision=revision, timeout=PROBE_SECONDS))
        _require_safetensors(name, [file.rfilename for file in found.siblings or ()])
        return Path(
            snapshot_download(
                name,
                revision=found.sha,
                allow_patterns=_REPOSITORY_FILES,
                ignore_patterns=_OTHER_FORMATS,
                etag_timeout=PROBE_SECONDS,
            )
        )
    except GatedRepoError as error:
        raise ModelUnusable(
            f"{name} is gated: accept its terms on the hub and set HF_TOKEN.", reason="MODEL_GATED"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelUnusable(
            f"The hub has no model {name} at revision {revision}. Correct {setting}.", reason="MODEL_NOT_FOUND"
        ) from error
    except ModelUnusable:
        raise
    except Exception as error:
        raise ModelUnusable(
            f"{name} is not on this machine and the hub could not be reached. "
            f"Put the directory of a downloaded model into {setting}, or start again with a network.",
            reason="HUB_UNREACHABLE",
        ) from error


def in_reach(seconds: float = REACH_SECONDS) -> bool:
    """Whether the hub takes a connection. Behind a proxy this cannot be told apart, and the answer is yes."""
    if _told_to_stay_offline():
        return False
    if any(os.environ.get(name) for name in _PROXIES):
        return True
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    address = (endpoint.hostname or "huggingface.co", endpoint.port or (80 if endpoint.scheme == "http" else 443))
    try:
        _within(seconds, lambda: socket.create_connection(address, seconds)).close()
    except OSError:
        return False
    return True


def _require_safetensors(name: str, files: list[str]) -> None:
    if not any(file.endswith(".safetensors") for file in files):
        raise ModelUnusable(
            f"{name} is published without safetensors weights, and pickled weights are never loaded. "
            "Convert it, or choose a model or revision with safetensors.",
            reason="MODEL_PICKLED",
        )


def _cache_root() -> Path:
    explicit = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    home = os.environ.get("HF_HOME")
    if not home:
        home = str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    return Path(home).expanduser() / "hub"


def _told_to_stay_offline() -> bool:
    return any(
        os.environ.get(name, "").strip().upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _within(seconds: float, ask: Callable[[], Any]) -> Any:
    """``ask()``, or TimeoutError: name resolution and retries inside the client obey no timeout of its own."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(ask())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="hub-probe", daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError("the hub did not answer in time")
    return outcome[0]
