"""A model directory on disk that is whole, and so small that tests can break it in every way."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

CONTEXT = 32


def write_safetensors(path: Path, floats: int = 4) -> None:
    """A valid safetensors file with one tensor."""
    header = json.dumps({"weight": {"dtype": "F32", "shape": [floats], "data_offsets": [0, 4 * floats]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * floats))


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    """A directory that looks like a small chat model: one token a word, a context of 32 tokens."""
    path = tmp_path / "tiny-chat"
    path.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": CONTEXT}
    (path / "config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text(json.dumps({"top_k": 7, "temperature": 0.6}))
    (path / "chat_template.jinja").write_text("{{ messages }}")
    (path / "README.md").write_text("---\nlicense: x\n---\n# Tiny\n\nA tiny model. It knows nothing.\n")
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "word": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))
    write_safetensors(path / "model.safetensors")
    return path
