"""A model that no engine should load is found out by its files alone, with the reason."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_service.checkpoint import card_sentence, inspect
from mesh.errors import ModelUnusable


def _truncate(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def _lengthen(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")


def _replace_by_pickle(path: Path) -> None:
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def _disguise_pickle(path: Path) -> None:
    (path / "model.safetensors").write_bytes(pickle.dumps({"weight": [0.0] * 100}))


def _point_to_missing_shard(path: Path) -> None:
    index = {"weight_map": {"weight": "model.safetensors", "other": "model-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_config(**values: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        (path / "config.json").write_text(json.dumps(values))

    return write


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "config.json").unlink(), "MODEL_DAMAGED"),
        (lambda path: (path / "config.json").write_text("{"), "MODEL_DAMAGED"),
        (lambda path: (path / "config.json").write_text("[]"), "MODEL_DAMAGED"),
        (lambda path: (path / "tokenizer.json").unlink(), "MODEL_DAMAGED"),
        (lambda path: (path / "model.safetensors").unlink(), "MODEL_DAMAGED"),
        (lambda path: (path / "model.safetensors").write_bytes(b""), "MODEL_DAMAGED"),
        (lambda path: (path / "model.safetensors").write_bytes(b"\xff" * 64), "MODEL_DAMAGED"),
        (_truncate, "MODEL_DAMAGED"),
        (_lengthen, "MODEL_DAMAGED"),
        (_disguise_pickle, "MODEL_DAMAGED"),
        (_point_to_missing_shard, "MODEL_DAMAGED"),
        (_replace_by_pickle, "MODEL_PICKLED"),
        (_write_config(architectures=["BertModel"]), "MODEL_WRONG_KIND"),
        (_write_config(architectures=["BertForSequenceClassification"]), "MODEL_WRONG_KIND"),
        (_write_config(architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True), "MODEL_WRONG_KIND"),
        (_write_config(), "MODEL_WRONG_KIND"),
    ],
)
def test_what_is_wrong_is_said(model_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    """Every kind of damage is a ModelUnusable with its own reason."""
    damage(model_path)
    with pytest.raises(ModelUnusable) as caught:
        inspect(model_path)
    assert caught.value.reason == reason


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """A path that does not exist is told apart from one that is damaged."""
    with pytest.raises(ModelUnusable) as caught:
        inspect(tmp_path / "nowhere")
    assert caught.value.reason == "MODEL_NOT_FOUND"


def test_a_whole_model(model_path: Path) -> None:
    """A whole model passes, and its facts are read."""
    found = inspect(model_path)
    assert (
        found.context_tokens,
        found.has_chat_template,
        found.generation_defaults,
    ) == (32, True, {"top_k": 7, "temperature": 0.6})


def test_a_shard_cannot_lead_out_of_the_directory(model_path: Path, tmp_path: Path) -> None:
    """A weight map that names a file elsewhere is read as a name inside the directory, which is not there."""
    (tmp_path / "outside.safetensors").write_bytes((model_path / "model.safetensors").read_bytes())
    index = {"weight_map": {"weight": "../outside.safetensors"}}
    (model_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelUnusable):
        inspect(model_path)


@pytest.mark.parametrize(
    ("card", "sentence"),
    [
        ("---\na: b\n---\n# Title\n\n![x](y)\n\nThe first\nsentence. The second.", "The first sentence."),
        ("No front matter here", "No front matter here"),
        ("# Only a title", ""),
    ],
)
def test_the_cards_first_sentence(tmp_path: Path, card: str, sentence: str) -> None:
    """The description is the card's first sentence of prose."""
    (tmp_path / "README.md").write_text(card)
    assert sentence == card_sentence(tmp_path)


def test_no_card(tmp_path: Path) -> None:
    """A model without a card has no description."""
    assert card_sentence(tmp_path) == ""
