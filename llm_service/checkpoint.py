"""Looks at a model's files before any engine does: whole, safe to load, and able to write text."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.errors import ModelUnusable

_MAX_HEADER_BYTES = 100 * 1024 * 1024  # what the safetensors library itself accepts
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_WRITES_TEXT = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True)
class Checkpoint:
    """A usable model on disk.

    Attributes:
        path: its directory.
        context_tokens: longest prompt and answer together; 0 when the files do not say.
        dtype: number format of the weights, such as bfloat16; empty when the files do not say.
        has_chat_template: whether it can answer chats, and not only continue prompts.
        generation_defaults: the author's ``generation_config.json``.
    """

    path: Path
    context_tokens: int
    dtype: str
    has_chat_template: bool
    generation_defaults: dict[str, Any]


def inspect(path: Path) -> Checkpoint:
    """What the directory holds. Reads headers only: milliseconds, however large the model.

    Raises:
        ModelUnusable: with the reason MODEL_NOT_FOUND, MODEL_PICKLED, MODEL_DAMAGED or MODEL_WRONG_KIND.
    """
    if not path.is_dir():
        raise ModelUnusable("The model's directory is not there; check LLM_MODEL.", reason="MODEL_NOT_FOUND")
    config = _read_json(path / "config.json", required=True)
    _require_text_generation(config)
    for shard in _shards(path):
        check_safetensors(shard)
    if not (path / "tokenizer.json").is_file():
        raise ModelUnusable(
            "The model has no tokenizer.json. Save its tokenizer in the fast form beside the weights.",
            reason="MODEL_DAMAGED",
        )
    tokenizer_config = _read_json(path / "tokenizer_config.json")
    return Checkpoint(
        path=path,
        context_tokens=_context_tokens(config),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or ""),
        has_chat_template=(path / "chat_template.jinja").is_file() or bool(tokenizer_config.get("chat_template")),
        generation_defaults=_read_json(path / "generation_config.json"),
    )


def check_safetensors(path: Path) -> None:
    """Compare a weights file's length with what its own header says it holds.

    Raises:
        ModelUnusable: truncated, too long, or no safetensors file; reason MODEL_DAMAGED.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > min(_MAX_HEADER_BYTES, size):
                raise ValueError("the header's length is impossible")
            header = json.loads(file.read(header_bytes))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + header_bytes + max(ends, default=0)
    except FileNotFoundError:
        raise ModelUnusable(
            f"The weights file {path.name} is missing; fetch the model again.", reason="MODEL_DAMAGED"
        ) from None
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError):
        raise ModelUnusable(
            f"{path.name} is not a safetensors file; fetch the model again.", reason="MODEL_DAMAGED"
        ) from None
    if size != expected:
        state = "truncated" if size < expected else "longer than its header says"
        raise ModelUnusable(
            f"{path.name} is {state}: {size} bytes instead of {expected}; fetch the model again.",
            reason="MODEL_DAMAGED",
        )


def card_sentence(path: Path) -> str:
    """The first sentence of prose in the model's card; empty when there is none."""
    try:
        text = (path / "README.md").read_text(encoding="utf-8")[:20_000]
    except (OSError, UnicodeDecodeError):
        return ""
    if text.startswith("---"):
        text = text.partition("\n---")[2]
    for paragraph in text.split("\n\n"):
        prose = " ".join(paragraph.split())
        if prose and prose[0].isalnum():
            sentence, stop, _ = prose.partition(". ")
            return (sentence + stop).strip()[:300]
    return ""


def _shards(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = set(_read_json(index, required=True).get("weight_map", {}).values())
        return [path / Path(name).name for name in sorted(map(str, names))]
    found = sorted(path.glob("*.safetensors"))
    if found:
        return found
    if any(any(path.glob(pattern)) for pattern in _PICKLED):
        raise ModelUnusable(
            "The model has only pickled weights, which can run code when loaded. Convert it to safetensors.",
            reason="MODEL_PICKLED",
        )
    raise ModelUnusable("The model's directory holds no weights (*.safetensors).", reason="MODEL_DAMAGED")


def _require_text_generation(config: dict[str, Any]) -> None:
    architectures = [str(name) for name in config.get("architectures") or ()]
    writes = any(name.endswith(_WRITES_TEXT) for name in architectures)
    if not writes or config.get("is_encoder_decoder"):
        kind = ", ".join(architectures) or "nothing"
        raise ModelUnusable(
            f"The model's configuration names {kind}, which writes no text. Set LLM_MODEL to a text-generation model.",
            reason="MODEL_WRONG_KIND",
        )


def _context_tokens(config: dict[str, Any]) -> int:
    for source in (config, config.get("text_config") or {}):
        for key in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"):
            value = source.get(key)
            if isinstance(value, int) and value > 0:
                return value
    return 0


def _read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not required:
            return {}
        raise ModelUnusable(f"The model has no {path.name}; fetch it again.", reason="MODEL_DAMAGED") from None
    except (OSError, ValueError):
        raise ModelUnusable(
            f"The model's {path.name} cannot be read; fetch it again.", reason="MODEL_DAMAGED"
        ) from None
    if not isinstance(value, dict):
        raise ModelUnusable(f"The model's {path.name} holds no object; fetch it again.", reason="MODEL_DAMAGED")
    return value
