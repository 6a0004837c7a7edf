"""Fills the volume of models before the workers start: ``python -m ops.docker.fill_models PREPARED``.

The same preparations as in local mode, by the same code: models found or fetched, graphs exported, engines measured and
chosen, the demo language model trained. The workers then need the volume for reading alone, and no hub. What is done
already is not done again. What cannot be prepared stops nothing: its worker says why it does not serve.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from llm_service.models import DEMO, locate
from mesh.errors import ModelUnusable
from ops.local.console import Console
from ops.local.layout import Layout
from ops.local.models import prepare_models
from ops.local.topology import plan

_READS_FILES = ("transformers", "vllm")
"""Engines of the language model that read a Hugging Face model from the volume."""


def main(prepared: Path, environ: Mapping[str, str]) -> int:
    """Fill the volume at ``MESH_MODELS``."""
    # Compose hands on what is not set as empty.
    wishes = {name: value for name, value in environ.items() if value}
    layout, console = Layout.from_environment(wishes), Console()
    take_compiled(prepared, layout.models)
    prepare_models(layout, plan(wishes), console, wishes)
    fetch_language_model(layout, console, wishes)
    console.say("The models are ready.")
    return 0


def take_compiled(prepared: Path, models: Path) -> None:
    """Copy the libraries that were compiled when the image was built, each whole or not at all."""
    for library in prepared.glob("native/*.so"):
        place = models / "native" / library.name
        if place.exists():
            continue
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        draft = place.with_suffix(".draft")
        shutil.copyfile(library, draft)
        draft.chmod(0o755)
        draft.replace(place)


def fetch_language_model(layout: Layout, console: Console, environ: Mapping[str, str]) -> None:
    """Have the hub's cache in the volume hold the language model; its worker cannot write there."""
    model = environ.get("LLM_MODEL", DEMO)
    if model == DEMO or environ.get("LLM_ENGINE", "transformers") not in _READS_FILES:
        return
    try:
        with console.step(f"language model {model}: finding its files"):
            locate(model, environ.get("LLM_MODEL_REVISION", ""), demo_path=layout.models / "demo-llm")
    except ModelUnusable as error:
        console.say(f"  llm could not be prepared; the mesh starts all the same. {error.message}")


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), os.environ))
