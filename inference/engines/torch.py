"""The torch engine: any architecture transformers knows, in float32 or half precision, on CPU or CUDA."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from inference.card import ModelKind
from inference.engines import DeviceOutOfMemory, EngineTraits, FloatArray, Head, bert
from inference.engines.bert_config import bert_config
from inference.padding import PaddedBatch, split
from inference.pooling import pooled
from mesh.errors import ModelUnusable

if TYPE_CHECKING:
    from inference.models import ResolvedModel

_MALLOPT_TRIM_THRESHOLD, _MALLOPT_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _LARGEST_KEPT_BYTES = 1 << 30, 32 << 20
_SHORT = {"bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchOptions:
    """How torch runs a model.

    Attributes:
        precision: ``float32``, ``bfloat16`` or ``float16``, of the matrix products.
        device: ``cpu`` or ``cuda:0``.
        threads: that compute on CPU, each a part of the batch; 0 leaves it to torch, whose threads share operators.
        through_transformers: never the project's own BERT: the reference must be others' code.
    """

    precision: str = "float32"
    device: str = "cpu"
    threads: int = 0
    through_transformers: bool = False


class _Model(Protocol):
    """A model that takes padded batches."""

    def states(self, batch: PaddedBatch) -> torch.Tensor:
        """(n, length, dimensions)."""
        ...

    def logits(self, batch: PaddedBatch) -> torch.Tensor:
        """(n, labels)."""
        ...


class TorchEngine:
    """A model under inference mode.

    On CPU each thread computes inputs of its own, with one thread an operator: threads that share every operator wait
    for each other some hundred times a batch, and burn a core while another process has theirs.
    """

    def __init__(self, model: ResolvedModel, head: Head, options: TorchOptions) -> None:
        if options.threads:
            torch.set_num_threads(options.threads)
        self._threads = options.threads if options.device == "cpu" else 0
        if options.device == "cpu":
            _keep_freed_memory()
        self._helpers = (
            ThreadPoolExecutor(options.threads, initializer=torch.set_num_threads, initargs=(1,))
            if self._threads > 1
            else None
        )
        dtype: torch.dtype = getattr(torch, options.precision)
        device = torch.device(options.device)
        self._head = head
        self._on_cpu = device.type == "cpu"
        self._model: _Model
        config = None if options.through_transformers else bert_config(model)
        if config is not None:
            self._model = bert.BertModel(model, config, head, dtype=dtype, device=device)
        else:
            self._model = _TransformersModel(load_module(model, head), dtype=dtype, device=device)
        self.traits = EngineTraits(
            name="torch" if options.precision == "float32" else f"torch-{_SHORT[options.precision]}",
            precision=options.precision,
            device=options.device,
        )

    def run(self, batch: PaddedBatch) -> FloatArray:
        """See Engine."""
        if self._helpers is not None and len(batch.ids) > 1:
            outputs = list(self._helpers.map(self._computed, split(batch, self._threads)))
            return _joined(outputs, batch) if self._head is Head.TOKENS else np.concatenate(outputs)
        if self._threads:
            torch.set_num_threads(self._threads)  # a thread takes over what was set last, and helpers set 1
        return self._computed(batch)

    def close(self) -> None:
        """See Engine."""
        if self._helpers is not None:
            self._helpers.shutdown()
        del self._model

    def _computed(self, batch: PaddedBatch) -> FloatArray:
        try:
            with torch.inference_mode():
                if self._head is Head.LOGITS:
                    return _array(self._model.logits(batch))
                return self._pool(self._model.states(batch), batch)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise DeviceOutOfMemory from error

    def _pool(self, states: torch.Tensor, batch: PaddedBatch) -> FloatArray:
        if self._head is Head.MEAN and not self._on_cpu:
            # On the device, so that vectors instead of token states cross the bus.
            mask = torch.from_numpy(batch.mask).to(states.device).unsqueeze(-1)
            return _array((states.float() * mask).sum(dim=1) / mask.sum(dim=1))
        return pooled(_array(states), batch, self._head)


class _TransformersModel:
    """A transformers module as a model of padded batches."""

    def __init__(self, module: Any, *, dtype: torch.dtype, device: torch.device) -> None:
        self._device, self._dtype = device, dtype
        self._on_cpu = device.type == "cpu"
        self._module = module if self._on_cpu else module.to(device=device, dtype=dtype)

    def states(self, batch: PaddedBatch) -> torch.Tensor:
        """See _Model."""
        states: torch.Tensor = self._forward(batch).last_hidden_state
        return states

    def logits(self, batch: PaddedBatch) -> torch.Tensor:
        """See _Model."""
        logits: torch.Tensor = self._forward(batch).logits
        return logits

    def _forward(self, batch: PaddedBatch) -> Any:
        arrays = {"input_ids": batch.ids, "attention_mask": batch.mask}
        if batch.type_ids is not None and getattr(self._module.config, "type_vocab_size", 0) > 1:
            arrays["token_type_ids"] = batch.type_ids
        inputs = {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
        # On CPU the weights stay float32 and the matrix products run in half precision: layer norms and sums keep
        # their accuracy, and no operator is missing.
        half = self._on_cpu and self._dtype != torch.float32
        with torch.autocast("cpu", dtype=self._dtype if half else torch.bfloat16, enabled=half):
            return self._module(**inputs)


def load_module(
    model: ResolvedModel, head: Head, attention: str = "sdpa", *, dtype: torch.dtype = torch.float32
) -> Any:
    """The transformers module, from safetensors only, never with the model's own code.

    Raises:
        ModelUnusable: transformers cannot build it, or weights are missing.
    """
    # Before the import: its progress bar belongs into a terminal, not into a worker's log.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging

    quiet: Any = transformers_logging  # its functions have no annotations
    quiet.disable_progress_bar()
    quiet.set_verbosity_error()
    factory: Any = AutoModelForSequenceClassification if head is Head.LOGITS else AutoModel
    if model.card.kind is ModelKind.GENERATIVE:
        factory = AutoModelForCausalLM
    try:
        module, report = factory.from_pretrained(
            model.path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation=attention,
            output_loading_info=True,
        )
    except Exception as error:
        if attention == "sdpa":
            return load_module(model, head, attention="eager", dtype=dtype)
        raise ModelUnusable(
            f"transformers cannot load {model.name} ({model.card.architecture}). The worker's log has the reason; "
            "choose a model this version of transformers knows.",
            reason="MODEL_UNSUPPORTED",
        ) from error
    # An encoder without its pooler is whole: nothing here reads it.
    needed = sorted(key for key in report["missing_keys"] if head is Head.LOGITS or "pooler" not in key)
    if needed:
        raise ModelUnusable(
            f"The weights of {model.name} lack {len(needed)} tensors of its architecture, {needed[0]} among them. "
            "Fetch the model again.",
            reason="MODEL_DAMAGED",
        )
    return module.eval()


def _keep_freed_memory() -> None:
    """Have glibc keep what an operator frees for the next one, instead of giving it back to the kernel.

    Every operator's result is some megabytes: with glibc's defaults a quarter of the time went into page faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_MALLOPT_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        mallopt(_MALLOPT_TRIM_THRESHOLD, _KEPT_BYTES)


def _joined(parts: list[FloatArray], batch: PaddedBatch) -> FloatArray:
    """Token states of the parts of a batch, in one rectangle."""
    states = np.zeros((*batch.ids.shape, parts[0].shape[-1]), dtype=np.float32)
    row = 0
    for part in parts:
        states[row : row + len(part), : part.shape[1]] = part
        row += len(part)
    return states


def _array(tensor: torch.Tensor) -> FloatArray:
    values: FloatArray = tensor.float().cpu().numpy()
    return values
