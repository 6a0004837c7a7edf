"""What kind of model a directory holds, read from its configuration files without importing any framework."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from mesh.errors import ModelUnusable


class ModelKind(Enum):
    """What a worker wants a model for."""

    EMBEDDING = "embedding"
    CROSS_ENCODER = "cross-encoder"


class Pooling(Enum):
    """How token states become one vector."""

    MEAN = "mean"
    CLS = "cls"
    MAX = "max"
    LAST = "lasttoken"


_LEGACY_POOLING = {
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_max_tokens": Pooling.MAX,
    "pooling_mode_lasttoken": Pooling.LAST,
}
_POSITIONS_AFTER_PADDING = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})
"""Their first position is pad_token_id + 1, so that many positions are never used."""

_FALLBACK_MAX_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """The facts about a model that the workers need.

    Attributes:
        max_input_tokens: the longest input in tokens, special tokens included.
        dimensions: length of a token state, and so of a vector.
        labels: outputs of a classification head; 0 for an encoder.
        matryoshka_dimensions: dimensions the model says it was trained to be cut to.
        prompts: prefix by input type (``query``, ``document``).
    """

    kind: ModelKind
    model_type: str
    architecture: str
    dimensions: int
    vocabulary: int
    max_input_tokens: int
    pooling: Pooling = Pooling.MEAN
    lower_case: bool = False
    labels: int = 0
    pad_token_id: int = 0
    matryoshka_dimensions: tuple[int, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, *, name: str, kind: ModelKind) -> ModelCard:
        """Read the card of the model in ``path``.

        Raises:
            ModelUnusable: a file is missing or damaged, the model is of another kind, or it brings its own code.
        """
        config = _json(path / "config.json", name)
        _refuse_remote_code(config, name)
        if not (path / "tokenizer.json").is_file():
            raise ModelUnusable(
                f"{name} has no tokenizer.json. Save its tokenizer with AutoTokenizer.save_pretrained, and add it.",
                reason="MODEL_TOKENIZER_MISSING",
            )
        try:
            return cls._of(path, name, kind, config)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ModelUnusable(
                f"{name}: a value in its configuration has the wrong type. Fetch the model again.",
                reason="MODEL_DAMAGED",
            ) from error

    @classmethod
    def _of(cls, path: Path, name: str, kind: ModelKind, config: Mapping[str, Any]) -> ModelCard:
        architecture = _architecture(config, name, kind)
        sentence = _optional_json(path / "sentence_bert_config.json", name)
        tokenizer = _optional_json(path / "tokenizer_config.json", name)
        transformers_config = _optional_json(path / "config_sentence_transformers.json", name)
        return cls(
            kind=kind,
            model_type=str(config.get("model_type", "")),
            architecture=architecture,
            dimensions=_positive(config, name, "hidden_size", "dim", "d_model"),
            vocabulary=_positive(config, name, "vocab_size"),
            max_input_tokens=_max_tokens(config, sentence, tokenizer),
            pooling=_pooling(path, name) if kind is ModelKind.EMBEDDING else Pooling.CLS,
            lower_case=bool(sentence.get("do_lower_case", False)),
            labels=_labels(config, name) if kind is ModelKind.CROSS_ENCODER else 0,
            pad_token_id=int(config.get("pad_token_id") or 0),
            matryoshka_dimensions=tuple(int(each) for each in config.get("matryoshka_dimensions") or ()),
            prompts=_prompts(transformers_config),
        )


def _json(file: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelUnusable(
            f"{name} has no {file.name}. Fetch the model again, or correct the path.", reason="MODEL_NOT_FOUND"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelUnusable(
            f"{name}: {file.name} cannot be read. Fetch the model again.", reason="MODEL_DAMAGED"
        ) from error
    if not isinstance(value, dict):
        raise ModelUnusable(f"{name}: {file.name} is not a JSON object.", reason="MODEL_DAMAGED")
    return value


def _optional_json(file: Path, name: str) -> dict[str, Any]:
    return _json(file, name) if file.is_file() else {}


def _refuse_remote_code(config: Mapping[str, Any], name: str) -> None:
    if "auto_map" in config:
        raise ModelUnusable(
            f"{name} brings its own code (auto_map), which is never run. "
            "Choose a model whose architecture transformers knows.",
            reason="MODEL_REMOTE_CODE",
        )


def _architecture(config: Mapping[str, Any], name: str, kind: ModelKind) -> str:
    named = config.get("architectures") or [""]
    architecture = str(named[0])
    classifies = architecture.endswith("ForSequenceClassification")
    if kind is ModelKind.CROSS_ENCODER and not classifies:
        raise _wrong_kind(name, architecture, "a cross-encoder (…ForSequenceClassification)")
    generates = architecture.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel"))
    if kind is ModelKind.EMBEDDING and (classifies or generates):
        raise _wrong_kind(name, architecture, "a text encoder")
    if not config.get("model_type"):
        raise _wrong_kind(name, architecture, "a transformers model with a model_type")
    return architecture


def _wrong_kind(name: str, architecture: str, wanted: str) -> ModelUnusable:
    return ModelUnusable(
        f"{name} is {architecture or 'of an unnamed architecture'}, and {wanted} is needed here. Choose another model.",
        reason="MODEL_WRONG_KIND",
    )


def _positive(config: Mapping[str, Any], name: str, *keys: str) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and value > 0:
            return value
    raise ModelUnusable(f"{name}: config.json states no {keys[0]}.", reason="MODEL_DAMAGED")


def _max_tokens(config: Mapping[str, Any], sentence: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> int:
    limits = [sentence.get("max_seq_length"), tokenizer.get("model_max_length")]
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config.get("model_type") in _POSITIONS_AFTER_PADDING:
        positions -= int(config.get("pad_token_id") or 1) + 1
    limits.append(positions)
    # A tokenizer without a limit states 10^30.
    usable = [int(each) for each in limits if isinstance(each, (int, float)) and 0 < each < 10**7]
    return min(usable, default=_FALLBACK_MAX_TOKENS)


def _pooling(path: Path, name: str) -> Pooling:
    """From modules.json; mean where there is none, which is what sentence-transformers does with a bare encoder."""
    if not (path / "modules.json").is_file():
        return Pooling.MEAN
    pooling: Pooling | None = None
    for kind, folder in _modules(path / "modules.json", name):
        if kind == "Pooling":
            pooling = _pooling_mode(_json(path / folder / "config.json", name), name)
        elif kind not in {"Transformer", "Normalize"}:
            raise ModelUnusable(
                f"{name} has a {kind} module, which is not supported. Choose a model of transformer, pooling and "
                "normalisation only.",
                reason="MODEL_UNSUPPORTED",
            )
    return pooling or Pooling.MEAN


def _modules(file: Path, name: str) -> list[tuple[str, str]]:
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
        return [(str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in listed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnusable(
            f"{name}: {file.name} cannot be read. Fetch the model again.", reason="MODEL_DAMAGED"
        ) from error


def _pooling_mode(config: Mapping[str, Any], name: str) -> Pooling:
    stated = config.get("pooling_mode")
    modes = [stated] if isinstance(stated, str) else list(stated or ())
    modes += [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    try:
        (mode,) = modes
        return _LEGACY_POOLING[mode] if mode in _LEGACY_POOLING else Pooling(mode)
    except ValueError as error:
        known = ", ".join(each.value for each in Pooling)
        raise ModelUnusable(
            f"{name} pools by {', '.join(map(str, modes)) or 'nothing'}; supported is one of {known}.",
            reason="MODEL_UNSUPPORTED",
        ) from error


def _labels(config: Mapping[str, Any], name: str) -> int:
    # transformers leaves both keys out of a configuration with two labels, its default.
    labels = config.get("num_labels") or len(config.get("id2label") or ()) or 2
    if labels != 1:
        raise ModelUnusable(
            f"{name} has {labels} labels; a reranker has one. Choose a cross-encoder trained for ranking.",
            reason="MODEL_WRONG_KIND",
        )
    return 1


def _prompts(config: Mapping[str, Any]) -> dict[str, str]:
    stated = config.get("prompts") or {}
    query = stated.get("query") or ""
    document = stated.get("document") or stated.get("passage") or ""
    return {key: value for key, value in (("query", query), ("document", document)) if value}
