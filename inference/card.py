"""What kind of model a directory holds, read from its configuration files without importing any framework."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from mesh.errors import ModelUnusable


class ModelKind(Enum):
    """What a worker wants a model for."""

    EMBEDDING = "embedding"
    CROSS_ENCODER = "cross-encoder"
    GENERATIVE = "generative"
    """A language model that answers whether a document is relevant."""
    RERANKER = "reranker"
    """Whichever of the two a model is; its card names the one."""


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
        prompts: prefix by name (``query``, ``document``, …), none of them empty.
        default_prompt: name of the prompt for inputs of no stated type; empty means none.
        normalize: whether vectors are scaled to length 1 unless a request says otherwise.
        states_modules: whether the model's own files say how it pools, or that was assumed.
        profile: where prompts, pooling and dimensions came from, for people.
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
    default_prompt: str = ""
    normalize: bool = True
    states_modules: bool = False
    profile: str = "model"

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
        modules = _modules(path / "modules.json", name) if kind is ModelKind.EMBEDDING else []
        architecture, kind = _architecture(config, name, kind, is_embedder="Pooling" in dict(modules))
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
            pooling=_pooling(path, modules, name) if kind is ModelKind.EMBEDDING else Pooling.CLS,
            lower_case=bool(sentence.get("do_lower_case", False)),
            labels=_labels(config, name) if kind is ModelKind.CROSS_ENCODER else 0,
            pad_token_id=int(config.get("pad_token_id") or 0),
            matryoshka_dimensions=tuple(int(each) for each in config.get("matryoshka_dimensions") or ()),
            prompts=_prompts(transformers_config),
            default_prompt=str(transformers_config.get("default_prompt_name") or ""),
            normalize=_normalizes(modules, transformers_config),
            states_modules=bool(modules),
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


def _architecture(config: Mapping[str, Any], name: str, kind: ModelKind, *, is_embedder: bool) -> tuple[str, ModelKind]:
    """The architecture's name, and what the model is: of RERANKER, which of the two."""
    architecture = str((config.get("architectures") or [""])[0])
    classifies = architecture.endswith("ForSequenceClassification")
    generates = architecture.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel"))
    if kind is ModelKind.RERANKER and (classifies or generates):
        kind = ModelKind.CROSS_ENCODER if classifies else ModelKind.GENERATIVE
    if kind in (ModelKind.CROSS_ENCODER, ModelKind.RERANKER) and not classifies:
        raise _wrong_kind(name, architecture, "a cross-encoder (…ForSequenceClassification)")
    if kind is ModelKind.GENERATIVE and not generates:
        raise _wrong_kind(name, architecture, "a language model (…ForCausalLM)")
    # A decoder that was trained to embed keeps the name of the language model it was made of, and says how it pools.
    if kind is ModelKind.EMBEDDING and (classifies or (generates and not is_embedder)):
        raise _wrong_kind(name, architecture, "a text encoder")
    if not config.get("model_type"):
        raise _wrong_kind(name, architecture, "a transformers model with a model_type")
    return architecture, kind


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


def _pooling(path: Path, modules: Sequence[tuple[str, str]], name: str) -> Pooling:
    """From modules.json; mean where there is none, which is what sentence-transformers does with a bare encoder."""
    pooling = Pooling.MEAN
    for kind, folder in modules:
        if kind == "Pooling":
            pooling = _pooling_mode(_json(path / folder / "config.json", name), name)
        elif kind not in {"Transformer", "Normalize"}:
            raise ModelUnusable(
                f"{name} has a {kind} module, which is not supported. Choose a model of transformer, pooling and "
                "normalisation only.",
                reason="MODEL_UNSUPPORTED",
            )
    return pooling


def _modules(file: Path, name: str) -> list[tuple[str, str]]:
    """Kind and folder of each module, in order; none where the model has no such file."""
    if not file.is_file():
        return []
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
        return [(str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in listed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnusable(
            f"{name}: {file.name} cannot be read. Fetch the model again.", reason="MODEL_DAMAGED"
        ) from error


def _normalizes(modules: Sequence[tuple[str, str]], config: Mapping[str, Any]) -> bool:
    """Only where a model compares by the plain dot product do its vectors' lengths mean something."""
    plain_dot = config.get("similarity_fn_name") in {"dot", "dot_product"}
    return not plain_dot or any(kind == "Normalize" for kind, _ in modules)


def _pooling_mode(config: Mapping[str, Any], name: str) -> Pooling:
    if config.get("include_prompt") is False:
        raise ModelUnusable(
            f"{name} leaves the prompt's tokens out of its pooling, which is not supported. Choose another model.",
            reason="MODEL_UNSUPPORTED",
        )
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
    # sentence-transformers writes empty prompts for query and document into models that have none.
    return {str(key): str(value) for key, value in (config.get("prompts") or {}).items() if value}
