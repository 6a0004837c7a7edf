"""Exports a model to an ONNX graph with fused attention, once per model. Needs torch; loading the result does not."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.engines import Head
from mesh.telemetry import fields, get_logger

if TYPE_CHECKING:
    from inference.models import ResolvedModel

log = get_logger(__name__)

_FORMAT = 1
"""Raised when the exported graph changes, so that graphs of an older version are not used."""

_OPSET = 17
_FUSED_AS_BERT = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet"})


def graph_file(models_dir: Path, model: ResolvedModel, head: Head) -> Path:
    """Where the graph of this model and head is kept. One graph of token states serves every pooling head."""
    kind = "classifier" if head is Head.LOGITS else "encoder"
    return models_dir / "onnx" / model.sha256[:16] / f"{kind}-v{_FORMAT}.onnx"


def export(model: ResolvedModel, head: Head, target: Path) -> None:
    """Write the graph to ``target``, in one step: a half-written graph is never seen."""
    target.parent.mkdir(parents=True, exist_ok=True)
    plain = target.with_suffix(f".{os.getpid()}.plain.onnx")
    fused = target.with_suffix(f".{os.getpid()}.fused.onnx")
    try:
        heads = _export_plain(model, head, plain)
        _fuse(model, heads, plain, fused)
        fused.replace(target)
    finally:
        plain.unlink(missing_ok=True)
        fused.unlink(missing_ok=True)


def _export_plain(model: ResolvedModel, head: Head, target: Path) -> int:
    """Write the graph as traced, and return the model's number of attention heads (0 where it states none)."""
    import torch

    from inference.engines.torch import load_module

    # Eager attention: the fusion below knows its pattern and puts one Attention node in its place.
    module = _Exportable.wrap(load_module(model, head, attention="eager"), head)
    ids = torch.randint(0, min(1000, model.card.vocabulary), (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if head is Head.LOGITS and getattr(module.model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    axes = {name: {0: "batch", 1: "length"} for name in inputs}
    output = "logits" if head is Head.LOGITS else "states"
    axes[output] = {0: "batch"} if head is Head.LOGITS else {0: "batch", 1: "length"}
    with warnings.catch_warnings(), torch.inference_mode():
        # The tracing exporter is announced as legacy; the newer one's graphs have no pattern that the fusion knows.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(target),
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes=axes,
            opset_version=_OPSET,
            dynamo=False,
        )
    return int(getattr(module.model.config, "num_attention_heads", 0))


class _Exportable:
    """Makes the module take tensors by position and return one tensor."""

    @staticmethod
    def wrap(model: Any, head: Head) -> Any:
        import torch

        class Positional(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
                more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
                output = self.model(input_ids=input_ids, attention_mask=attention_mask, **more)
                return output.logits if head is Head.LOGITS else output.last_hidden_state

        return Positional().eval()


def _fuse(model: ResolvedModel, heads: int, plain: Path, target: Path) -> None:
    """Fuse attention, layer norms and activations; where that fails, the plain graph is right and slower."""
    try:
        from onnxruntime.transformers import optimizer
        from onnxruntime.transformers.fusion_options import FusionOptions

        if model.card.model_type not in _FUSED_AS_BERT:
            raise NotImplementedError(f"no fusion known for {model.card.model_type}")
        fused = optimizer.optimize_model(
            str(plain),
            model_type="bert",
            num_heads=heads,
            hidden_size=model.card.dimensions,
            opt_level=0,
            optimization_options=FusionOptions("bert"),
        )
        fused.save_model_to_file(str(target))
    except Exception as error:
        log.warning("graph not fused", extra=fields(model=model.name, why=type(error).__name__))
        plain.replace(target)
