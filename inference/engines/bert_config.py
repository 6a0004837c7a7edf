"""What a BERT's ``config.json`` says, for the engines that compute one by themselves. Imports no framework."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference.models import ResolvedModel

_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
_NEEDED = {"model_type": "bert", "hidden_act": "gelu"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """The sizes of an encoder.

    Attributes:
        inner: width between a layer's two last products.
        epsilon: of its layer norms.
    """

    layers: int
    hidden: int
    heads: int
    inner: int
    epsilon: float


def bert_config(model: ResolvedModel) -> BertConfig | None:
    """The sizes, where this is a BERT as published: absolute positions, exact GELU, an encoder. Otherwise None."""
    config: dict[str, Any] = json.loads((model.path / "config.json").read_text(encoding="utf-8"))
    plain = all(config.get(key) == value for key, value in _NEEDED.items())
    absolute = config.get("position_embedding_type", "absolute") == "absolute"
    decodes = bool(config.get("is_decoder")) or bool(config.get("add_cross_attention"))
    epsilon = config.get("layer_norm_eps", 1e-12)
    if not plain or not absolute or decodes or not isinstance(epsilon, float):
        return None
    sizes = [size for name in _SIZES if isinstance(size := config.get(name), int) and size > 0]
    if len(sizes) != len(_SIZES):
        return None
    layers, hidden, heads, inner = sizes
    return BertConfig(layers=layers, hidden=hidden, heads=heads, inner=inner, epsilon=epsilon)
