"""Models as sentence-transformers computes them in float32, from files that `inference` found and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference.models import ResolvedModel

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

AUTO = "auto"


def device_named(wanted: str) -> str:
    """What torch calls a device; ``auto`` takes the first GPU where there is one."""
    if wanted != AUTO:
        return wanted
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def text_encoder(model: ResolvedModel, device: str) -> SentenceTransformer:
    """An encoder of texts. Blocks while weights are read."""
    from sentence_transformers import SentenceTransformer

    _without_progress_bars()
    encoder = SentenceTransformer(
        str(model.path),
        device=device_named(device),
        local_files_only=True,
        model_kwargs={"use_safetensors": True},
    ).float()
    encoder.max_seq_length = model.card.max_input_tokens
    return encoder


def pair_scorer(model: ResolvedModel, device: str) -> CrossEncoder:
    """A cross-encoder whose scores are in [0, 1]. Blocks while weights are read."""
    import torch
    from sentence_transformers import CrossEncoder

    _without_progress_bars()
    return CrossEncoder(
        str(model.path),
        device=device_named(device),
        num_labels=1,
        max_length=model.card.max_input_tokens,
        activation_fn=torch.nn.Sigmoid(),
        local_files_only=True,
        model_kwargs={"use_safetensors": True},
    )


def _without_progress_bars() -> None:
    """They belong into a terminal, not into a server's log."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
