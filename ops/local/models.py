"""Preparing models ahead of the first start, with progress: the workers do the same by themselves, but silently.

A preparation that fails stops nothing: its worker then says why it does not serve, and the rest of the mesh does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inference.machine import fingerprint
from ops.local.console import Console
from ops.local.failures import OperatorError
from ops.local.layout import Layout
from ops.local.processes import Command, run_logged
from ops.local.record import write_atomically
from ops.local.topology import Topology

# Engines that load a Hugging Face model, as the demo is one.
_LOAD_THE_DEMO = ("transformers", "vllm")
# What of a worker's settings decides what is prepared, and the option of `inference.prepare` that takes it.
_ENGINE_OPTIONS = {
    "MODEL": "--model",
    "MODEL_REVISION": "--revision",
    "MODEL_SHA256": "--sha256",
    "ENGINE": "--engine",
    "DEVICE": "--device",
    "THREADS": "--threads",
    "MIN_COSINE": "--min-cosine",
    "ONNX_DIR": "--onnx-dir",
}


@dataclass(frozen=True)
class Preparation:
    """One model to prepare: for which process, with which arguments to the workers' Python, and its stamp's inputs."""

    process: str
    label: str
    arguments: tuple[str, ...]
    sources: tuple[str, ...]
    product: Path | None = None
    """What must be there for it to count as done."""
    measures: bool = False
    """Whether it measures this machine: on another one it is not done."""


def preparations(layout: Layout, environ: Mapping[str, str]) -> tuple[Preparation, ...]:
    """What the workers of ``environ`` will load, as far as it can be prepared."""
    engine_code = ("inference/*.py", "inference/engines/*.py")
    prepared = [
        Preparation(
            "embedding",
            "embedding model: checking, exporting, choosing the fastest faithful engine",
            ("-m", "inference.prepare", "--for", "embedding", *_engine_arguments("EMBEDDING_", environ)),
            engine_code,
            measures=True,
        )
    ]
    # auto, or nothing, lets the model and what is in reach decide, as the worker does.
    method = environ.get("RERANKING_METHOD", "auto")
    reranking = "reranking" if method == "auto" else method
    prepared.append(
        Preparation(
            "reranking",
            "reranking model: the same",
            ("-m", "inference.prepare", "--for", reranking, *_engine_arguments("RERANKING_", environ)),
            engine_code,
            measures=True,
        )
    )
    if environ.get("LLM_MODEL", "demo") == "demo" and environ.get("LLM_ENGINE", "transformers") in _LOAD_THE_DEMO:
        output = str(layout.models / "demo-llm")
        prepared.append(
            Preparation(
                "llm",
                "demo language model: learning its page by heart",
                ("ops/demo_llm/train.py", "--output", output),
                ("ops/demo_llm/*",),
                product=layout.models / "demo-llm" / "config.json",
            )
        )
    return tuple(prepared)


def _engine_arguments(prefix: str, environ: Mapping[str, str]) -> list[str]:
    return [
        part
        for name, option in _ENGINE_OPTIONS.items()
        if (value := environ.get(prefix + name))
        for part in (option, value)
    ]


def prepare_models(layout: Layout, topology: Topology, console: Console, environ: Mapping[str, str]) -> None:
    """Prepare what the processes started here will load and what has not been prepared before."""
    layout.models.mkdir(parents=True, exist_ok=True)
    for preparation in preparations(layout, environ):
        if preparation.process in topology.names and not _is_done(preparation, layout):
            _prepare(preparation, layout, console, environ)


def _prepare(preparation: Preparation, layout: Layout, console: Console, environ: Mapping[str, str]) -> None:
    homes = {"MESH_HOME": str(layout.home), "MESH_MODELS": str(layout.models), "PYTHONUNBUFFERED": "1"}
    command = Command(
        arguments=[str(layout.python("workers")), *preparation.arguments],
        directory=layout.checkout,
        environ={**environ, **homes},
        log=layout.install_log,
    )
    try:
        with console.step(preparation.label) as step:
            run_logged(command, step)
    except OperatorError as error:
        console.say(f"  {preparation.process} could not be prepared; the mesh starts all the same. {error.message}")
        return
    write_atomically(_stamp_path(preparation, layout), _stamp(preparation, layout) + "\n")


def _is_done(preparation: Preparation, layout: Layout) -> bool:
    if preparation.product is not None and not preparation.product.exists():
        return False
    path = _stamp_path(preparation, layout)
    return path.exists() and path.read_text().strip() == _stamp(preparation, layout)


def _stamp(preparation: Preparation, layout: Layout) -> str:
    """What the preparation depends on: its arguments, the code that does it, the packages that code runs on, and the
    machine where that is measured.
    """
    digest = hashlib.sha256(json.dumps(preparation.arguments).encode())
    digest.update(fingerprint().encode() if preparation.measures else b"")
    for pattern in (*preparation.sources, "ops/constraints/workers.txt"):
        for path in sorted(layout.checkout.glob(pattern)):
            digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def _stamp_path(preparation: Preparation, layout: Layout) -> Path:
    return layout.models / f".prepared-{preparation.process}"
