"""BERT encoders in plain torch: what the torch engine runs for the commonest architecture.

Importing transformers costs a worker two seconds of its start and a hundred megabytes. Besides, padding is left out of
every matrix product here: tokens of all inputs are laid end to end, and only attention sees the rectangle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from inference import weights
from inference.engines import Head
from inference.engines.bert_config import BertConfig
from inference.padding import PaddedBatch

if TYPE_CHECKING:
    from inference.models import ResolvedModel

_SHORTEST_STEP = 8
_STEPS_PER_OCTAVE = 8
"""Of the token counts that are computed on CPU: at most an eighth is computed for nothing, and up to 2048 tokens there
are fewer than sixty counts. For each other one, oneDNN compiles and keeps kernels and their memory: with every count
its own, a worker grew by more than a gigabyte, and took longer."""


@dataclass(frozen=True, slots=True)
class _Linear:
    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        return functional.linear(values.to(self.weight.dtype), self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(values, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True, slots=True)
class _Layer:
    query_key_value: _Linear
    attention_output: _Linear
    attention_norm: _Norm
    widen: _Linear
    narrow: _Linear
    output_norm: _Norm


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the tokens of a batch lie.

    Attributes:
        rows: indexes the flattened rectangle; None where there is no padding.
        spare: rows of zeros behind the tokens, so that their number is one of few.
    """

    inputs: int
    length: int
    rows: torch.Tensor | None
    attention_mask: torch.Tensor | None
    spare: int


class BertModel:
    """A BERT encoder, with its classification head where the weights have one.

    Sums, layer norms and embeddings are float32 whatever the precision of the matrix products.
    """

    def __init__(
        self, model: ResolvedModel, config: BertConfig, head: Head, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._dtype, self._device = dtype, device
        self._heads = config.heads
        tensors = _Tensors(model, dtype=dtype, device=device, epsilon=config.epsilon)
        self._words = tensors.plain("embeddings.word_embeddings.weight")
        self._positions = tensors.plain("embeddings.position_embeddings.weight")
        self._types = tensors.plain("embeddings.token_type_embeddings.weight")
        self._norm = tensors.norm("embeddings.LayerNorm")
        self._layers = [tensors.layer(f"encoder.layer.{index}") for index in range(config.layers)]
        classifies = head is Head.LOGITS
        self._classifier = (
            (tensors.linear("pooler.dense"), tensors.linear("classifier", outside=True)) if classifies else None
        )

    def states(self, batch: PaddedBatch) -> torch.Tensor:
        """float32 (n, length, dimensions); padding is zero."""
        layout = self._layout(batch)
        ids, types = torch.from_numpy(batch.ids).to(self._device), None
        if batch.type_ids is not None:
            types = torch.from_numpy(batch.type_ids).to(self._device)
        values = self._embedded(ids, types, layout)
        for layer in self._layers:
            values = self._run(layer, values, layout)
        return _unpacked(values, layout).view(layout.inputs, layout.length, -1)

    def logits(self, batch: PaddedBatch) -> torch.Tensor:
        """float32 (n, labels)."""
        if self._classifier is None:
            raise ValueError("loaded without a classification head")
        pooler, classifier = self._classifier
        first = self.states(batch)[:, 0]
        return classifier(torch.tanh(pooler(first).float())).float()

    def _layout(self, batch: PaddedBatch) -> _Layout:
        inputs, length = batch.ids.shape
        if int(batch.lengths.min()) == length:
            return _Layout(inputs, length, None, None, self._spare(inputs * length))
        real = torch.from_numpy(batch.mask).to(self._device).bool()
        attention_mask = torch.zeros(inputs, 1, 1, length, dtype=self._dtype, device=self._device)
        attention_mask.masked_fill_(~real[:, None, None, :], float("-inf"))
        return _Layout(
            inputs, length, real.flatten().nonzero().flatten(), attention_mask, self._spare(int(batch.lengths.sum()))
        )

    def _spare(self, tokens: int) -> int:
        return rounded(tokens) - tokens if self._device.type == "cpu" else 0

    def _embedded(self, ids: torch.Tensor, types: torch.Tensor | None, layout: _Layout) -> torch.Tensor:
        positions = torch.arange(layout.length, device=self._device).expand(layout.inputs, -1)
        words, places = _packed(ids.reshape(-1), layout), _packed(positions.reshape(-1), layout)
        kinds = self._types[0] if types is None else self._types[_packed(types.reshape(-1), layout)]
        return _with_spare(self._norm(self._words[words] + self._positions[places] + kinds), layout)

    def _run(self, layer: _Layer, values: torch.Tensor, layout: _Layout) -> torch.Tensor:
        attended = self._attention(layer.query_key_value(values), layout)
        values = layer.attention_norm(values + layer.attention_output(attended).float())
        widened = functional.gelu(layer.widen(values))
        return layer.output_norm(values + layer.narrow(widened).float())

    def _attention(self, query_key_value: torch.Tensor, layout: _Layout) -> torch.Tensor:
        rectangle = _unpacked(query_key_value, layout)
        by_head = rectangle.view(layout.inputs, layout.length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = by_head.unbind(0)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=layout.attention_mask)
        rectangle = attended.transpose(1, 2).reshape(layout.inputs * layout.length, -1)
        return _with_spare(_packed(rectangle, layout), layout)


def rounded(tokens: int) -> int:
    """The next larger of the token counts that are computed."""
    step = max(_SHORTEST_STEP, (1 << (tokens - 1).bit_length()) // (2 * _STEPS_PER_OCTAVE))
    return -(-tokens // step) * step


def _with_spare(values: torch.Tensor, layout: _Layout) -> torch.Tensor:
    return functional.pad(values, (0, 0, 0, layout.spare)) if layout.spare else values


def _packed(rectangle: torch.Tensor, layout: _Layout) -> torch.Tensor:
    return rectangle if layout.rows is None else rectangle[layout.rows]


def _unpacked(values: torch.Tensor, layout: _Layout) -> torch.Tensor:
    values = values[: len(values) - layout.spare]
    if layout.rows is None:
        return values
    rectangle = values.new_zeros(layout.inputs * layout.length, values.shape[1])
    rectangle[layout.rows] = values
    return rectangle


class _Tensors:
    """The weights by their published names, with or without the ``bert.`` that a head puts before them."""

    def __init__(self, model: ResolvedModel, *, dtype: torch.dtype, device: torch.device, epsilon: float) -> None:
        from safetensors.torch import load_file

        self._found: dict[str, torch.Tensor] = {}
        for file in weights.weight_files(model.path, name=model.name):
            self._found.update(load_file(file))
        self._prefix = "bert." if "bert.embeddings.word_embeddings.weight" in self._found else ""
        self._dtype, self._device, self._epsilon = dtype, device, epsilon

    def plain(self, name: str) -> torch.Tensor:
        """A float32 tensor."""
        return self._found[self._prefix + name].to(self._device, torch.float32)

    def norm(self, name: str) -> _Norm:
        """A layer norm, in float32."""
        return _Norm(self.plain(f"{name}.weight"), self.plain(f"{name}.bias"), self._epsilon)

    def linear(self, *names: str, outside: bool = False) -> _Linear:
        """One matrix product out of those named, whose outputs follow each other."""
        prefix = "" if outside else self._prefix
        parts = [
            torch.cat([self._found[f"{prefix}{name}.{part}"] for name in names]).to(self._device, self._dtype)
            for part in ("weight", "bias")
        ]
        return _Linear(*parts)

    def layer(self, name: str) -> _Layer:
        """One transformer layer."""
        itself = f"{name}.attention.self"
        return _Layer(
            query_key_value=self.linear(f"{itself}.query", f"{itself}.key", f"{itself}.value"),
            attention_output=self.linear(f"{name}.attention.output.dense"),
            attention_norm=self.norm(f"{name}.attention.output.LayerNorm"),
            widen=self.linear(f"{name}.intermediate.dense"),
            narrow=self.linear(f"{name}.output.dense"),
            output_norm=self.norm(f"{name}.output.LayerNorm"),
        )
