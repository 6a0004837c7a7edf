"""The demo model as a GGUF file: a Llama with a byte-level tokenizer, its numbers as they are."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALIGNMENT = 32
_U32, _F32, _BOOL, _STRING, _ARRAY, _I32 = 4, 6, 7, 8, 9, 5
_NORMAL, _CONTROL = 1, 3
_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class Tensor:
    """Float32 numbers, row by row."""

    name: str
    shape: Sequence[int]
    numbers: bytes


def write_gguf(model: Path, target: Path) -> None:
    """Write the Hugging Face model in the directory ``model`` to the file ``target``."""
    config = json.loads((model / "config.json").read_text())
    facts = [*_facts(config), *_tokenizer(model)]
    tensors = list(_tensors(model / "model.safetensors", config))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts))
    head += b"".join(_string(key) + struct.pack("<I", kind) + _value(kind, value) for key, kind, value in facts)
    offset = 0
    for tensor in tensors:
        head += _string(tensor.name) + struct.pack("<I", len(tensor.shape))
        head += b"".join(struct.pack("<Q", size) for size in reversed(tensor.shape))
        head += struct.pack("<IQ", 0, offset)  # type 0 is float32
        offset += len(_padded(tensor.numbers))
    target.write_bytes(_padded(head) + b"".join(_padded(tensor.numbers) for tensor in tensors))


def _facts(config: dict[str, Any]) -> list[tuple[str, int, Any]]:
    return [
        ("general.architecture", _STRING, "llama"),
        ("general.name", _STRING, "demo"),
        ("llama.block_count", _U32, config["num_hidden_layers"]),
        ("llama.context_length", _U32, config["max_position_embeddings"]),
        ("llama.embedding_length", _U32, config["hidden_size"]),
        ("llama.feed_forward_length", _U32, config["intermediate_size"]),
        ("llama.attention.head_count", _U32, config["num_attention_heads"]),
        ("llama.attention.head_count_kv", _U32, config["num_key_value_heads"]),
        ("llama.attention.layer_norm_rms_epsilon", _F32, config["rms_norm_eps"]),
        ("llama.rope.dimension_count", _U32, config["head_dim"]),
        ("llama.rope.freq_base", _F32, config["rope_parameters"]["rope_theta"]),
        ("llama.vocab_size", _U32, config["vocab_size"]),
    ]


def _tokenizer(model: Path) -> list[tuple[str, int, Any]]:
    said = json.loads((model / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in said["added_tokens"]}
    words = sorted({**said["model"]["vocab"], **special}.items(), key=lambda item: item[1])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in said["model"]["merges"]]
    end = json.loads((model / "tokenizer_config.json").read_text())["eos_token"]
    return [
        ("tokenizer.ggml.model", _STRING, "gpt2"),
        ("tokenizer.ggml.pre", _STRING, "gpt-2"),
        ("tokenizer.ggml.tokens", _ARRAY, (_STRING, [word for word, _ in words])),
        ("tokenizer.ggml.token_type", _ARRAY, (_I32, [_CONTROL if word in special else _NORMAL for word, _ in words])),
        ("tokenizer.ggml.merges", _ARRAY, (_STRING, merges)),
        ("tokenizer.ggml.eos_token_id", _U32, special[end]),
        ("tokenizer.ggml.add_bos_token", _BOOL, False),
        ("tokenizer.chat_template", _STRING, (model / "chat_template.jinja").read_text()),
    ]


def _tensors(path: Path, config: dict[str, Any]) -> Iterator[Tensor]:
    raw = path.read_bytes()
    (header_bytes,) = struct.unpack("<Q", raw[:8])
    start = 8 + header_bytes
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, entry in json.loads(raw[8:start]).items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "F32"
        begin, end = entry["data_offsets"]
        numbers, shape = raw[start + begin : start + end], entry["shape"]
        if name.startswith("model.layers."):
            _, _, layer, rest = name.removesuffix(".weight").split(".", 3)
            part = _NAMES[rest]
            numbers = _interleaved(numbers, shape, heads[part]) if part in heads else numbers
            yield Tensor(f"blk.{layer}.{part}.weight", shape, numbers)
        else:
            known = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
            yield Tensor(known[name], shape, numbers)


def _interleaved(numbers: bytes, shape: Sequence[int], heads: int) -> bytes:
    """The rows of a projection in llama.cpp's order: it turns neighbours, Hugging Face the halves of a head."""
    row = len(numbers) // shape[0]
    size = shape[0] // heads
    order = [
        head * size + half * (size // 2) + at for head in range(heads) for at in range(size // 2) for half in (0, 1)
    ]
    return b"".join(numbers[index * row : (index + 1) * row] for index in order)


def _value(kind: int, value: Any) -> bytes:
    match kind:
        case 8:
            return _string(value)
        case 9:
            inner, values = value
            return struct.pack("<IQ", inner, len(values)) + b"".join(_value(inner, each) for each in values)
        case _:
            return struct.pack({_U32: "<I", _F32: "<f", _BOOL: "<?", _I32: "<i"}[kind], value)


def _string(text: str) -> bytes:
    spelt = text.encode("utf-8")
    return struct.pack("<Q", len(spelt)) + spelt


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % ALIGNMENT)
