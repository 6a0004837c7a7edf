"""Language models as rerankers: one forward pass, the answer read off the logits after the last token."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inference.engines import DeviceOutOfMemory, EngineTraits, FloatArray, Head
from inference.engines.torch import TorchOptions, load_module
from inference.padding import Int64Array, PaddedBatch
from inference.prompted import AnswerTokens

if TYPE_CHECKING:
    from inference.models import ResolvedModel

_NAMES = {"float32": "torch", "bfloat16": "torch-bf16", "float16": "torch-fp16"}


class GenerativeEngine:
    """A causal language model under inference mode. ``run`` returns (n, 1): how much rather yes than no, in logits."""

    def __init__(self, model: ResolvedModel, answers: AnswerTokens, options: TorchOptions) -> None:
        self._dtype: torch.dtype = getattr(torch, options.precision)
        self._device = torch.device(options.device)
        self._on_cpu = self._device.type == "cpu"
        self._answers = answers
        # On CPU the weights stay float32, as the torch engine's do.
        module = load_module(model, Head.LOGITS, dtype=torch.float32 if self._on_cpu else self._dtype)
        self._module = module.to(self._device)
        self._takes = frozenset(inspect.signature(self._module.forward).parameters)
        self._threads = options.threads if self._on_cpu else 0
        self.traits = EngineTraits(name=_NAMES[options.precision], precision=options.precision, device=options.device)

    def run(self, batch: PaddedBatch) -> FloatArray:
        """See Engine."""
        if self._threads:
            torch.set_num_threads(self._threads)  # counts for the calling thread, which is not the one that loaded
        try:
            with torch.inference_mode():
                last = self._last_logits(batch).float()
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise DeviceOutOfMemory from error
        score = last[:, self._answers.yes]
        if self._answers.no is not None:
            score = score - last[:, self._answers.no]
        found: FloatArray = score[:, None].cpu().numpy()
        return found

    def close(self) -> None:
        """See Engine."""
        del self._module

    def _last_logits(self, batch: PaddedBatch) -> torch.Tensor:
        """(n, vocabulary): the logits after each input's last token, in the column that left padding puts there."""
        ids, mask, positions = padded_left(batch)
        arrays = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        inputs: dict[str, Any] = {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
        # Over the whole vocabulary the logits of every position would be larger than the model.
        inputs |= {"logits_to_keep": 1, "use_cache": False}
        taken = {name: value for name, value in inputs.items() if name in self._takes}
        half = self._on_cpu and self._dtype != torch.float32
        with torch.autocast("cpu", dtype=self._dtype if half else torch.bfloat16, enabled=half):
            logits: torch.Tensor = self._module(**taken).logits
        return logits[:, -1]


def padded_left(batch: PaddedBatch) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Ids, mask and positions of a batch with its padding moved to the left, where it stands before no token."""
    count, length = batch.ids.shape
    columns = np.arange(length)
    shift = (length - batch.lengths)[:, None]
    # Column c shows what was at c - shift; before that stands what was the padding on the right.
    ids = batch.ids[np.arange(count)[:, None], (columns - shift) % length]
    mask = (columns >= shift).astype(np.int64)
    positions = np.maximum(columns - shift, 0)
    return ids, mask, positions
