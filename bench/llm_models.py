"""The language models that the hop is measured with: the demo model, and one of random weights and an ordinary size."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.aside import Aside
from bench.options import Options
from bench.subject import CannotMeasure
from ops.local.layout import Layout

_SEED = 20
_OF_THE_DEMO = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True, slots=True)
class Model:
    """A model's directory, and what to call it."""

    path: Path
    name: str


@asynccontextmanager
async def models(options: Options, layout: Layout) -> AsyncIterator[tuple[Model, ...]]:
    """What to measure with: the model that the options name, else both.

    The demo model takes the engine a fraction of a millisecond for a token, so beside it the hop is at its most
    visible; what teams serve is a hundred times as large and more. The larger one says nothing, and takes exactly the
    time that a trained model of its shape takes.

    Raises:
        CannotMeasure: the demo model is not there.
        BaselineFailed: the larger one cannot be made.
    """
    if options.llm_model is not None:
        yield (Model(options.llm_model, options.llm_model.name),)
        return
    demo = layout.models / "demo-llm"
    if not (demo / "config.json").is_file():
        raise CannotMeasure(f"{demo} holds no demo model: ./scripts/start_torch_isolation.sh makes it")
    with tempfile.TemporaryDirectory(prefix="language-model-") as directory:
        async with Aside("the maker of a language model", _Maker) as maker:
            await maker.ask("make", str(demo), directory)
        yield Model(demo, "demo model"), Model(Path(directory), "0.14 B untrained")


class _Maker:
    """Makes a model with the demo model's tokenizer, in a process of its own: torch stays out of the load generator."""

    def make(self, demo: str, directory: str) -> None:
        import torch  # type: ignore[import-not-found, unused-ignore]
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.manual_seed(_SEED)
        config = AutoConfig.from_pretrained(demo, head_dim=64, **_SHAPE)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(directory)
        for name in _OF_THE_DEMO:
            shutil.copy(Path(demo) / name, directory)
