"""Which of docling's models are on this machine. Looks at folders only and imports nothing heavy."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from mesh.errors import ModelUnusable

PdfPipeline = Literal["native", "layout"]

_LAYOUT = "docling-project--docling-layout-heron"
_TABLES = "docling-project--docling-models"


def choose_pdf_pipeline(wanted: Literal["auto", "native", "layout"], artifacts_path: str) -> PdfPipeline:
    """The pipeline that can really run: ``auto`` is layout where its model and its libraries are here, else native.

    Raises:
        ModelUnusable: layout is wanted and cannot run.
    """
    if wanted == "native":
        return "native"
    missing = [name for name in ("torch", "transformers", "torchvision") if find_spec(name) is None]
    if not missing and layout_model_present(artifacts_path):
        return "layout"
    if wanted == "auto":
        return "native"
    needs = f"the packages {', '.join(missing)}" if missing else "docling's layout model"
    raise ModelUnusable(
        f"The layout pipeline needs {needs}; install them, name the models' folder in GPU_SERVICES_ARTIFACTS_PATH, "
        "or set GPU_SERVICES_PDF_PIPELINE=native.",
    )


def layout_model_present(artifacts_path: str) -> bool:
    """Whether docling's layout model is in the folder, or where none is named in the hub's cache."""
    return _present(artifacts_path, _LAYOUT)


def table_model_present(artifacts_path: str) -> bool:
    """Whether docling's model of table structure is in the folder, or where none is named in the hub's cache."""
    return _present(artifacts_path, _TABLES)


def _present(artifacts_path: str, repository: str) -> bool:
    if artifacts_path:
        folder = Path(artifacts_path).expanduser() / repository
        return any(folder.rglob("*.safetensors"))
    return any((_hub_cache() / f"models--{repository}" / "snapshots").glob("*/**/*.safetensors"))


def _hub_cache() -> Path:
    """Where huggingface_hub keeps downloads, by its own variables."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"
