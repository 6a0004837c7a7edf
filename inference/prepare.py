"""Does the slow part of a first start ahead of it: finds the model, exports the graph, measures and chooses the engine.

``python -m inference.prepare --for embedding`` and ``--for reranking`` are what a start script calls once after the
installation. The workers do the same by themselves where it was not called.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from inference.card import ModelKind
from inference.engines import Head
from inference.engines.choice import AUTO, ENGINES, EnginePlan
from inference.loading import default_models_dir, load
from inference.models import DEFAULT_EMBEDDING_MODEL, ModelRequest
from mesh.errors import MeshError

_PURPOSES = {
    "embedding": (ModelKind.EMBEDDING, None),
    "late-interaction": (ModelKind.EMBEDDING, Head.TOKENS),
    "cross-encoder": (ModelKind.CROSS_ENCODER, Head.LOGITS),
}


def main(arguments: list[str] | None = None) -> int:
    """Prepare one model. Returns the exit code: 1 where the model cannot be used."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    started = time.monotonic()

    def report(line: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {line}", flush=True)

    kind, head = _PURPOSES[options.purpose]
    request = ModelRequest(name=options.model, kind=kind, revision=options.revision, sha256=options.sha256)
    plan = EnginePlan(
        models_dir=options.models_dir,
        engine=options.engine,
        device=options.device,
        threads=options.threads,
        min_cosine=options.min_cosine,
    )
    try:
        loaded = load(request, plan, head=head, report=report, anew=options.again)
    except MeshError as error:
        report(f"{error.reason}: {error.message}")
        return 1
    verdict = loaded.verdict
    report(
        f"{loaded.model.name}: ready with {verdict.engine} on {verdict.device}, "
        f"{verdict.texts_per_second:.0f} texts/s at min cosine {verdict.min_cosine:.5f}"
    )
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m inference.prepare", description="Prepare a model for its worker.")
    parser.add_argument("--for", dest="purpose", choices=sorted(_PURPOSES), default="embedding", help="what it is for")
    parser.add_argument("--model", default=DEFAULT_EMBEDDING_MODEL, help="a directory or a hub name")
    parser.add_argument("--revision", default="", help="hub commit, branch or tag")
    parser.add_argument("--sha256", default="", help="expected hash of the weights")
    parser.add_argument("--engine", default=AUTO, choices=[AUTO, *ENGINES], help="pin an engine")
    parser.add_argument("--device", default=AUTO, help="auto, cpu or cuda:0")
    parser.add_argument("--threads", type=int, default=0, help="threads of one operator; 0 means all CPUs")
    parser.add_argument("--min-cosine", type=float, default=0.999, help="what counts as faithful to float32")
    parser.add_argument("--again", action="store_true", help="measure again, for a machine that was busy before")
    parser.add_argument("--models-dir", type=Path, default=default_models_dir(os.environ), help="where to keep it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
