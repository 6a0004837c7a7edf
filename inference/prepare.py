"""Does the slow part of a first start ahead of it: finds the model, exports the graph, measures and chooses the engine.

``python -m inference.prepare --for embedding`` and ``--for reranking`` are what a start script calls once after the
installation. The workers do the same by themselves where it was not called. ``--for late-interaction``,
``--for cross-encoder`` and ``--for generative`` pin how the reranker scores.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from inference.card import ModelKind
from inference.engines.choice import AUTO, ENGINES, EnginePlan, Report
from inference.loading import LoadedModel, default_models_dir, load
from inference.models import DEFAULT_EMBEDDING_MODEL, ModelRequest
from inference.profiles import Overrides
from inference.rerankers import Method, RerankerRequest, load_reranker
from mesh.errors import MeshError

_METHODS = {"reranking": None, **{method.value: method for method in Method}}


def main(arguments: list[str] | None = None) -> int:
    """Prepare one model. Returns the exit code: 1 where the model cannot be used."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    started = time.monotonic()

    def report(line: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {line}", flush=True)

    plan = EnginePlan(
        models_dir=options.models_dir,
        engine=options.engine,
        device=options.device,
        threads=options.threads,
        min_cosine=options.min_cosine,
        onnx_dir=options.onnx_dir,
    )
    try:
        loaded = _load(options, plan, report)
    except MeshError as error:
        report(f"{error.reason}: {error.message}")
        return 1
    verdict = loaded.verdict
    report(
        f"{loaded.model.name}: ready with {verdict.engine} on {verdict.device}, "
        f"{verdict.texts_per_second:.0f} texts/s at min cosine {verdict.min_cosine:.5f}"
    )
    return 0


def _load(options: argparse.Namespace, plan: EnginePlan, report: Report) -> LoadedModel:
    files = {"name": options.model, "revision": options.revision, "sha256": options.sha256}
    overrides = Overrides(file=options.profile)
    if options.purpose == "embedding":
        files["name"] = options.model or DEFAULT_EMBEDDING_MODEL
        request = ModelRequest(**files, kind=ModelKind.EMBEDDING, overrides=overrides)
        return load(request, plan, report=report, anew=options.again)
    reranker = RerankerRequest(**files, method=_METHODS[options.purpose], setting="--model", overrides=overrides)
    return load_reranker(reranker, plan, report=report, anew=options.again).loaded


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m inference.prepare", description="Prepare a model for its worker.")
    parser.add_argument(
        "--for", dest="purpose", choices=["embedding", *_METHODS], default="embedding", help="what it is for"
    )
    parser.add_argument("--model", default="", help="a directory or a hub name; empty means the worker's default")
    parser.add_argument("--profile", type=Path, default=None, help="a TOML or JSON file on how the model is used")
    parser.add_argument("--revision", default="", help="hub commit, branch or tag")
    parser.add_argument("--sha256", default="", help="expected hash of the weights")
    parser.add_argument("--engine", default=AUTO, choices=[AUTO, *ENGINES], help="pin an engine")
    parser.add_argument("--device", default=AUTO, help="auto, cpu or cuda:0")
    parser.add_argument("--threads", type=int, default=0, help="threads of one operator; 0 means all CPUs")
    parser.add_argument("--min-cosine", type=float, default=0.999, help="what counts as faithful to float32")
    parser.add_argument("--onnx-dir", type=Path, default=Path("models/onnx"), help="where exported models are")
    parser.add_argument("--again", action="store_true", help="measure again, for a machine that was busy before")
    parser.add_argument("--models-dir", type=Path, default=default_models_dir(os.environ), help="where to keep it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
