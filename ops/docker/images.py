"""Building the images, and how large they are."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping

from ops.docker.composition import MODELS, SERVICES
from ops.docker.engine import Compose, image_bytes
from ops.local.console import Console, render_table
from ops.local.topology import GATEWAY

DEFAULT_BASE = "python:3.11-slim-bookworm"
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
_REACH_SECONDS = 3.0
_BUILT = (GATEWAY, MODELS, *(service.name for service in SERVICES if service.name != GATEWAY))
"""The quickest to fail first; the second builds what the others share."""


def torch_index(environ: Mapping[str, str], *, asked: str, cuda: bool, console: Console) -> str:
    """Where the images take torch from; empty is pip's own index.

    ``asked``, or ``MESH_TORCH_INDEX_URL`` where it is set, also to nothing. Otherwise PyPI for CUDA, and for CPUs
    PyTorch's own index, since PyPI's build brings gigabytes of CUDA along; where that cannot be reached, PyPI.
    """
    if asked or "MESH_TORCH_INDEX_URL" in environ:
        return asked or environ["MESH_TORCH_INDEX_URL"]
    if cuda:
        return ""
    if _answers(CPU_TORCH_INDEX):
        return CPU_TORCH_INDEX
    console.say(f"{CPU_TORCH_INDEX} cannot be reached: torch comes from where pip takes all else.")
    return ""


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/", timeout=_REACH_SECONDS).close()  # noqa: S310 - an https address of our own
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def build(compose: Compose, console: Console) -> None:
    """Build every image. Raises OperatorError with the end of what the builder said."""
    for name in _BUILT:
        compose.run(f"image {name}", console, "build", name)


def full_name(name: str, environ: Mapping[str, str], *, cuda: bool) -> str:
    """An image's name and tag, as the Compose files have it: the gateway has no torch, and so no other one for GPUs."""
    tag = environ.get("MESH_IMAGE_TAG") or ("cuda" if cuda and name != GATEWAY else "local")
    return f"torch-isolation-mesh/{name}:{tag}"


def size_table(environ: Mapping[str, str], *, cuda: bool) -> list[str]:
    """The images' sizes, uncompressed: in all, and beyond their base where the engine holds that.

    The workers' share the largest of their layers, which lies on the disk once.
    """
    below = image_bytes(environ.get("MESH_BASE_IMAGE") or DEFAULT_BASE)
    rows = []
    for name in _BUILT:
        size = image_bytes(full_name(name, environ, cuda=cuda))
        if size is not None:
            rows.append([name, _megabytes(size), _megabytes(size - below) if below is not None else "-"])
    return render_table(["IMAGE", "SIZE", "BEYOND ITS BASE"], rows) if rows else []


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
