"""A CUDA device, or the reason why there is none; and a model large enough to keep one busy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from inference import package
from ops.local.layout import Layout

BERT_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_SEED = 20


@pytest.fixture(scope="session", autouse=True)
def device() -> str:
    """The device to test on. Skips where there is none, and says why."""
    torch = pytest.importorskip("torch", reason="needs the workers' environment")
    if torch.version.cuda is None:
        pytest.skip(f"no CUDA: torch {torch.__version__} is built without it")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA: torch finds no device on this machine")
    return "cuda:0"


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The directory of the default embedding model."""
    found = package.model_directory()
    if found is None:
        pytest.skip("the package with the default model is not installed")
    return found


@pytest.fixture(scope="session")
def large_model(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model's tokenizer before a BERT of the base size, with random weights.

    Its vectors mean nothing and take exactly as long as a trained one's: the default model is so small that a large
    device waits for its launches most of the time.
    """
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    path = tmp_path_factory.mktemp("bert-base")
    torch.manual_seed(_SEED)
    config = BertConfig.from_pretrained(default_model, **BERT_BASE)
    BertModel(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(default_model).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Where workers keep what they choose; engines are measured anew."""
    return replace(Layout.from_environment({}), models=tmp_path_factory.mktemp("models"))
