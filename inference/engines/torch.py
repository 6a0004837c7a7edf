"""The torch engine: any architecture transformers knows, in float32 or half precision, on CPU or CUDA."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.engines import DeviceOutOfMemory, EngineTraits, FloatArray, Head
from inference.padding import PaddedBatch
from inference.pooling import pooled
from mesh.errors import ModelUnusable

if TYPE_CHECKING:
    import torch

    from inference.models import ResolvedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchOptions:
    """How torch runs a model.

    Attributes:
        precision: ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu`` or ``cuda:0``.
        threads: of one operator on CPU; 0 leaves torch's choice.
    """

    precision: str = "float32"
    device: str = "cpu"
    threads: int = 0


class TorchEngine:
    """A transformers model under inference mode."""

    def __init__(self, model: ResolvedModel, head: Head, options: TorchOptions) -> None:
        import torch

        self._torch = torch
        self._head = head
        self._device = torch.device(options.device)
        self._dtype: torch.dtype = getattr(torch, options.precision)
        if options.threads:
            torch.set_num_threads(options.threads)
        self._model = load_module(model, head)
        self._on_cpu = self._device.type == "cpu"
        if not self._on_cpu:
            self._model = self._model.to(device=self._device, dtype=self._dtype)
        self.traits = EngineTraits(
            name="torch" if options.precision == "float32" else f"torch-{_SHORT[options.precision]}",
            precision=options.precision,
            device=options.device,
        )

    def run(self, batch: PaddedBatch) -> FloatArray:
        """See Engine."""
        torch = self._torch
        inputs = {"input_ids": self._tensor(batch.ids), "attention_mask": self._tensor(batch.mask)}
        if batch.type_ids is not None:
            inputs["token_type_ids"] = self._tensor(batch.type_ids)
        # On CPU the weights stay float32 and the matrix products run in half precision: layer norms and sums keep
        # their accuracy, and no operator is missing.
        mixed = torch.autocast("cpu", dtype=self._dtype, enabled=self._on_cpu and self._dtype != torch.float32)
        try:
            with torch.inference_mode(), mixed:
                output = self._model(**inputs)
                if self._head is Head.LOGITS:
                    return _array(output.logits)
                return self._pool(output.last_hidden_state, batch)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise DeviceOutOfMemory from error

    def close(self) -> None:
        """See Engine."""
        del self._model

    def _pool(self, states: torch.Tensor, batch: PaddedBatch) -> FloatArray:
        if self._head is Head.MEAN and not self._on_cpu:
            # On the device, so that vectors instead of token states cross the bus.
            mask = self._tensor(batch.mask).unsqueeze(-1)
            summed = (states.float() * mask).sum(dim=1)
            return _array(summed / mask.sum(dim=1))
        return pooled(_array(states), batch, self._head)

    def _tensor(self, values: np.ndarray[Any, np.dtype[np.int64]]) -> torch.Tensor:
        return self._torch.from_numpy(values).to(self._device)


_SHORT = {"bfloat16": "bf16", "float16": "fp16"}


def load_module(model: ResolvedModel, head: Head, attention: str = "sdpa") -> Any:
    """The transformers module in float32, from safetensors only, never with the model's own code.

    Raises:
        ModelUnusable: transformers cannot build it, or weights are missing.
    """
    # Before the import: its progress bar belongs into a terminal, not into a worker's log.
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    factory = AutoModelForSequenceClassification if head is Head.LOGITS else AutoModel
    try:
        module, report = factory.from_pretrained(
            model.path,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation=attention,
            output_loading_info=True,
        )
    except Exception as error:
        if attention == "sdpa":
            return load_module(model, head, attention="eager")
        raise ModelUnusable(
            f"transformers cannot load {model.name} ({model.card.architecture}). The worker's log has the reason; "
            "choose a model this version of transformers knows.",
            reason="MODEL_UNSUPPORTED",
        ) from error
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing:
        raise ModelUnusable(
            f"The weights of {model.name} lack {len(missing)} tensors of its architecture, {missing[0]} among them. "
            "Fetch the model again.",
            reason="MODEL_DAMAGED",
        )
    return module.eval()


def _array(tensor: torch.Tensor) -> FloatArray:
    values: FloatArray = tensor.float().cpu().numpy()
    return values
