"""Exports a model to ONNX graphs that workers find: ``scripts/onnx_export.py``.

Writes ``<output>/<model>/model.onnx`` (float32, with fused attention), with ``--int8`` ``model.int8.onnx`` beside it,
and ``export.json``. How faithful each is to float32 through transformers' own code, and how fast, is measured and
printed.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference import machine
from inference.card import ModelKind
from inference.engines import Engine, FloatArray, Head, checks, onnx_export, onnx_int8
from inference.engines.onnxruntime import OnnxRuntimeEngine
from inference.exported import FLOAT32, INT8, MANIFEST, Export, ExportedGraph, folder_name, kind_of, sha256_of
from inference.models import ModelRequest, ResolvedModel, resolve
from inference.padding import PaddedBatch, pad
from inference.tokenizing import TextTokenizer, TokenizedInput
from mesh.errors import MeshError, ModelUnusable

_KINDS = (ModelKind.EMBEDDING, ModelKind.CROSS_ENCODER)
"""Language models that rerank run in torch alone."""
_FILES = {FLOAT32: "model.onnx", INT8: "model.int8.onnx"}
_BATCH_TOKENS = 1024
_ROUNDS = 3
_LARGEST_WEIGHTS = 1_900_000_000
"""An ONNX file is one protobuf message, of 2 GiB at most."""


@dataclass(frozen=True, slots=True)
class _Figures:
    """How one way to run the model did; the first two as in ExportedGraph."""

    worst: float
    mean: float
    texts_per_second: float


class _Trial:
    """One model's check texts, and what float32 through transformers makes of them."""

    def __init__(self, model: ResolvedModel, head: Head) -> None:
        from inference.engines.torch import TorchEngine, TorchOptions

        card = model.card
        tokenizer = TextTokenizer.load(
            model.path, name=model.name, max_tokens=card.max_input_tokens, lower_case=card.lower_case
        )
        self._head = head
        self._pad_token_id = card.pad_token_id
        self._checked = self._batches(checks.check_inputs(tokenizer, head))
        self._timed = self._batches(checks.timed_inputs(tokenizer, head))
        options = TorchOptions(threads=machine.cpus(), through_transformers=True)
        reference = TorchEngine(model, head, options)
        self._reference = self._outputs(reference)
        self._timed_reference = self._outputs(reference, self._timed)
        self.reference = self._figures(reference)
        reference.close()

    def figures(self, graph: Path, precision: str) -> _Figures:
        """Of one graph."""
        engine = self._open(graph, precision)
        found = self._figures(engine)
        engine.close()
        return found

    def least_cosine(self, graph: Path) -> float:
        """Of an int8 graph to the reference, of scores as the pairs that they make.

        Over the timed texts too: what is chosen by the check texts alone looks better on them than it is.
        """
        engine = self._open(graph, INT8)
        checked = checks.agreement(self._reference, self._outputs(engine))[0]
        timed = checks.agreement(self._timed_reference, self._outputs(engine, self._timed))[0]
        engine.close()
        return min(checked, timed)

    def _open(self, graph: Path, precision: str) -> OnnxRuntimeEngine:
        return OnnxRuntimeEngine(
            graph, self._head, threads=machine.cpus(), int8_export="measured" if precision == INT8 else ""
        )

    def _figures(self, engine: Engine) -> _Figures:
        outputs = self._outputs(engine)
        if self._head is Head.LOGITS:
            off = np.abs(np.stack(outputs)[:, 0] - np.stack(self._reference)[:, 0])
            return _Figures(float(off.max()), float(off.mean()), self._texts_per_second(engine))
        return _Figures(*checks.agreement(self._reference, outputs), self._texts_per_second(engine))

    def _outputs(self, engine: Engine, batches: Sequence[PaddedBatch] | None = None) -> list[FloatArray]:
        return [
            row
            for batch in (self._checked if batches is None else batches)
            for row in checks.comparable(engine.run(batch), batch, self._head)
        ]

    def _texts_per_second(self, engine: Engine) -> float:
        best = float("inf")
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            for batch in self._timed:
                engine.run(batch)
            best = min(best, time.perf_counter() - started)
        return sum(len(batch.lengths) for batch in self._timed) / best

    def _batches(self, inputs: Sequence[TokenizedInput]) -> list[PaddedBatch]:
        return [pad(batch, pad_token_id=self._pad_token_id) for batch in checks.batches(inputs, _BATCH_TOKENS)]


def main(arguments: list[str] | None = None) -> int:
    """Export one model. Returns the exit code: 1 where the model cannot be used or exported."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    started = time.monotonic()

    def report(line: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {line}", file=sys.stderr, flush=True)

    try:
        model, head = _resolve(options)
        report(f"{model.name}: computing the float32 reference")
        trial = _Trial(model, head)
        export = _export(model, head, trial, options, report)
    except MeshError as error:
        report(f"{error.reason}: {error.message}")
        return 1
    print(_table(export, trial.reference, model))
    return 0


def _resolve(options: argparse.Namespace) -> tuple[ResolvedModel, Head]:
    kinds = [ModelKind(options.kind)] if options.kind != "auto" else list(_KINDS)
    for kind in kinds:
        request = ModelRequest(
            name=options.model, kind=kind, revision=options.revision, sha256=options.sha256, setting="--model"
        )
        try:
            model = resolve(request)
        except ModelUnusable as error:
            if error.reason != "MODEL_WRONG_KIND" or kind is kinds[-1]:
                raise
        else:
            break
    size = sum(file.stat().st_size for file in model.path.glob("*.safetensors"))
    if size > _LARGEST_WEIGHTS:
        raise ModelUnusable(
            f"{model.name} has {size / 1e9:.1f} GB of weights, and one ONNX file holds 2 GB. Serve the original.",
            reason="MODEL_UNSUPPORTED",
        )
    # One graph of token states serves every pooling; the figures are those of the model's own.
    return model, Head.LOGITS if kind is ModelKind.CROSS_ENCODER else Head(model.card.pooling.value)


def _export(
    model: ResolvedModel, head: Head, trial: _Trial, options: argparse.Namespace, report: onnx_int8.Report
) -> Export:
    target: Path = options.output / folder_name(model.name)
    if target.exists() and not (target / MANIFEST).is_file():
        raise ModelUnusable(
            f"{target} is there already and is no export, so it is not overwritten. Name another --output.",
            reason="EXPORT_IN_THE_WAY",
        )
    draft = target.with_name(f"{target.name}.writing")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    report(f"{model.name}: exporting")
    onnx_export.export(model, head, draft / _FILES[FLOAT32])
    left_alone = {FLOAT32: 0}
    if options.int8:
        report(f"{model.name}: looking for what int8 may touch (smallest cosine {options.min_cosine:g})")
        left_alone[INT8] = onnx_int8.quantise(
            draft / _FILES[FLOAT32], draft / _FILES[INT8], fidelity=trial.least_cosine, least=options.min_cosine,
            report=report,
        )  # fmt: skip
    graphs = {precision: _graph(draft, precision, alone, trial) for precision, alone in left_alone.items()}
    Export(model=model.name, weights_sha256=model.sha256, kind=kind_of(head), graphs=graphs, folder=draft).write()
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    return Export.read(target / MANIFEST)


def _graph(folder: Path, precision: str, left_alone: int, trial: _Trial) -> ExportedGraph:
    file = folder / _FILES[precision]
    figures = trial.figures(file, precision)
    return ExportedGraph(
        file=file.name,
        sha256=sha256_of(file),
        size_bytes=file.stat().st_size,
        worst=figures.worst,
        mean=figures.mean,
        texts_per_second=figures.texts_per_second,
        left_alone=left_alone,
    )


def _table(export: Export, reference: _Figures, model: ResolvedModel) -> str:
    classifies = export.kind == "classifier"
    head = ("graph", "file", "size", *(("largest diff", "mean diff") if classifies else ("min cosine", "mean cosine")))
    weights = sum(file.stat().st_size for file in model.path.glob("*.safetensors"))
    rows = [
        (*head, "texts/s"),
        _row("the original, by transformers", "", weights, reference),
        *(
            _row(
                f"{precision}, {graph.left_alone} products in float32" if graph.left_alone else precision,
                graph.file,
                graph.size_bytes,
                _Figures(graph.worst, graph.mean, graph.texts_per_second),
            )
            for precision, graph in export.graphs.items()
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in cells).rstrip()
        for cells in (list(enumerate(zip(row, widths, strict=True))) for row in rows)
    ]
    what = "scores between 0 and 1" if classifies else "vectors"
    return "\n".join([f"{export.model} in {export.folder}; {what} compared with float32:", "", *lines])


def _row(name: str, file: str, size: int, figures: _Figures) -> tuple[str, ...]:
    numbers = (f"{figures.worst:.5f}", f"{figures.mean:.5f}", f"{figures.texts_per_second:,.0f}")
    return (name, file, f"{size / 1e6:.1f} MB", *numbers)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/onnx_export.py", description="Export a model to ONNX, measured against the original."
    )
    parser.add_argument("--model", required=True, help="a directory or a hub name")
    parser.add_argument(
        "--output", type=Path, default=Path("models/onnx"), help="where workers look (models/onnx in the checkout)"
    )
    parser.add_argument("--kind", choices=["auto", *(kind.value for kind in _KINDS)], default="auto")
    parser.add_argument("--int8", action="store_true", help="also quantise, as far as the fidelity below allows")
    parser.add_argument("--min-cosine", type=float, default=0.99, help="smallest cosine that int8 has to reach (0.99)")
    parser.add_argument("--revision", default="", help="hub commit, branch or tag")
    parser.add_argument("--sha256", default="", help="expected hash of the weights")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
