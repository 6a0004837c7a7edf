"""Which models are found, in which order, and which are refused."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference import hub, models, package
from inference.card import ModelKind, Pooling
from inference.models import DEFAULT_EMBEDDING_MODEL, PINNED_REVISIONS, ModelRequest, ModelSource, resolve
from inference.testing import write_model, write_safetensors
from mesh.errors import ModelUnusable

EMBEDDING, CROSS_ENCODER = ModelKind.EMBEDDING, ModelKind.CROSS_ENCODER


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test asks a network, and the cache is empty."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def request(path: Path | str, kind: ModelKind = EMBEDDING, **more: Any) -> ModelRequest:
    """A request as a worker makes it."""
    return ModelRequest(name=str(path), kind=kind, setting="EMBEDDING_MODEL", **more)


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    """Its name is the directory's, its revision the hash of the weights."""
    path = write_model(tmp_path / "mine")
    found = resolve(request(path))
    digest = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    assert (found.name, found.source, found.revision) == ("mine", ModelSource.PATH, f"sha256:{digest}")
    assert (found.card.max_input_tokens, found.card.dimensions) == (16, 8)


def pickled(path: Path) -> None:
    """Weights that could run code."""
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def truncated(path: Path) -> None:
    """A download cut short."""
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def without_weights(path: Path) -> None:
    """Nothing to load."""
    (path / "model.safetensors").unlink()


def not_safetensors(path: Path) -> None:
    """Something else under the right name."""
    (path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def empty_weights(path: Path) -> None:
    """A file of no bytes."""
    (path / "model.safetensors").write_bytes(b"")


def with_own_code(path: Path) -> None:
    """A configuration that names code to run."""
    change(path, auto_map={"AutoModel": "modeling.Evil"})


def generative(path: Path) -> None:
    """A language model."""
    change(path, architectures=["LlamaForCausalLM"])


def without_tokenizer(path: Path) -> None:
    """Only the slow tokenizer's files."""
    (path / "tokenizer.json").unlink()


def damaged_config(path: Path) -> None:
    """A configuration that is not JSON."""
    (path / "config.json").write_text("{", encoding="utf-8")


def mistyped_config(path: Path) -> None:
    """A configuration whose values are of the wrong type."""
    change(path, pad_token_id="x", matryoshka_dimensions=5)


def with_dense_module(path: Path) -> None:
    """A sentence-transformers pipeline with a layer that is not computed here."""
    modules = [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]
    (path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")


def change(path: Path, **config: object) -> None:
    """Change keys of config.json."""
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **config}), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (pickled, "MODEL_PICKLED"),
        (truncated, "MODEL_TRUNCATED"),
        (without_weights, "MODEL_NOT_FOUND"),
        (not_safetensors, "MODEL_DAMAGED"),
        (empty_weights, "MODEL_DAMAGED"),
        (with_own_code, "MODEL_REMOTE_CODE"),
        (generative, "MODEL_WRONG_KIND"),
        (without_tokenizer, "MODEL_TOKENIZER_MISSING"),
        (damaged_config, "MODEL_DAMAGED"),
        (mistyped_config, "MODEL_DAMAGED"),
        (with_dense_module, "MODEL_UNSUPPORTED"),
    ],
)
def test_a_defective_model_is_refused_with_a_reason(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    """Every defect has its reason and a message that says what to do, without the machine's paths."""
    path = write_model(tmp_path / "mine")
    damage(path)
    with pytest.raises(ModelUnusable) as caught:
        resolve(request(path))
    assert caught.value.reason == reason
    assert str(tmp_path) not in caught.value.message


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    """The message names the setting to correct."""
    with pytest.raises(ModelUnusable, match="EMBEDDING_MODEL") as caught:
        resolve(request(tmp_path / "nowhere"))
    assert caught.value.reason == "MODEL_NOT_FOUND"


def test_an_encoder_is_no_cross_encoder(tmp_path: Path) -> None:
    """The reranker refuses an embedding model, and the other way round."""
    with pytest.raises(ModelUnusable) as caught:
        resolve(request(write_model(tmp_path / "a"), CROSS_ENCODER))
    assert caught.value.reason == "MODEL_WRONG_KIND"
    classifier = write_model(tmp_path / "b", architecture="BertForSequenceClassification", num_labels=1)
    with pytest.raises(ModelUnusable):
        resolve(request(classifier))
    assert resolve(request(classifier, CROSS_ENCODER)).card.labels == 1


def test_a_classifier_with_several_labels_is_no_reranker(tmp_path: Path) -> None:
    """Transformers leaves a number of two out of the configuration; it is not mistaken for one."""
    path = write_model(tmp_path / "b", architecture="BertForSequenceClassification")
    with pytest.raises(ModelUnusable) as caught:
        resolve(request(path, CROSS_ENCODER))
    assert caught.value.reason == "MODEL_WRONG_KIND"


def test_weights_are_pinned_by_hash(tmp_path: Path) -> None:
    """Weights that differ from the pin are refused, and those that fit are not."""
    path = write_model(tmp_path / "mine")
    digest = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    assert resolve(request(path, sha256=digest.upper())).sha256 == digest
    with pytest.raises(ModelUnusable) as caught:
        resolve(request(path, sha256="0" * 64))
    assert caught.value.reason == "MODEL_HASH_MISMATCH"


def test_shards_are_checked_one_by_one(tmp_path: Path) -> None:
    """A model in several files is whole only with all of them, and none outside its directory."""
    path = write_model(tmp_path / "mine")
    (path / "model.safetensors").unlink()
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "m-1.safetensors", "y": "m-2.safetensors"}}), encoding="utf-8")
    write_safetensors(path / "m-1.safetensors")
    with pytest.raises(ModelUnusable, match="m-2"):
        resolve(request(path))
    write_safetensors(path / "m-2.safetensors")
    resolve(request(path))
    index.write_text(json.dumps({"weight_map": {"x": "../../m-1.safetensors"}}), encoding="utf-8")
    with pytest.raises(ModelUnusable, match="outside"):
        resolve(request(path))


def test_the_hubs_cache_is_read_without_a_network(tmp_path: Path) -> None:
    """A cached commit is found by branch and by commit."""
    repository = tmp_path / "hub" / "models--owner--name"
    write_model(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc", encoding="utf-8")
    for revision in ("", "abc"):
        found = resolve(request("owner/name", revision=revision))
        assert (found.source, found.revision, found.name) == (ModelSource.HUB_CACHE, "abc", "owner/name")


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_download_that_was_cut_off_counts_as_none(tmp_path: Path, missing: str) -> None:
    """What is half in the cache is fetched again, instead of being refused for ever."""
    snapshot = write_model(tmp_path / "hub" / "models--owner--name" / "snapshots" / "abc")
    assert hub.cached_snapshot("owner/name", "abc") == snapshot
    (snapshot / missing).unlink()
    assert hub.cached_snapshot("owner/name", "abc") is None


def test_without_cache_and_network_the_model_is_not_found() -> None:
    """Told to stay offline, nothing is asked and the message says what to set."""
    with pytest.raises(ModelUnusable, match="EMBEDDING_MODEL") as caught:
        resolve(request("owner/name"))
    assert caught.value.reason == "MODEL_NOT_FOUND"


def test_a_hub_that_does_not_answer_fails_in_time() -> None:
    """A blackholed network costs the probe's time, not minutes."""
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        hub._within(0.05, lambda: time.sleep(5))
    assert time.monotonic() - started < 2


def test_the_package_serves_the_default_model_only_with_the_published_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of that name with other weights is refused."""
    monkeypatch.setattr(package, "model_directory", lambda: write_model(tmp_path / "packaged"))
    with pytest.raises(ModelUnusable) as caught:
        resolve(request(DEFAULT_EMBEDDING_MODEL))
    assert caught.value.reason == "MODEL_HASH_MISMATCH"
    digest = hashlib.sha256((tmp_path / "packaged" / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setitem(models.PINNED_SHA256, DEFAULT_EMBEDDING_MODEL, digest)
    found = resolve(request(DEFAULT_EMBEDDING_MODEL))
    assert (found.source, found.name) == (ModelSource.PACKAGE, DEFAULT_EMBEDDING_MODEL)


def test_default_models_are_pinned_to_a_commit() -> None:
    """A branch name is no pin."""
    assert all(len(commit) == 40 and int(commit, 16) for commit in PINNED_REVISIONS.values())


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, Pooling.MEAN),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, Pooling.CLS),
        ({"pooling_mode": "lasttoken"}, Pooling.LAST),
        ({"pooling_mode": ["max"]}, Pooling.MAX),
    ],
)
def test_pooling_is_read_in_its_old_and_new_form(tmp_path: Path, config: object, pooling: Pooling) -> None:
    """sentence-transformers has written it in two ways."""
    path = write_model(tmp_path / "mine")
    modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}]
    (path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert resolve(request(path)).card.pooling is pooling


@pytest.mark.parametrize("config", [{"pooling_mode": ["mean", "max"]}, {"pooling_mode": "weightedmean"}, {}])
def test_pooling_that_is_not_computed_here_is_refused(tmp_path: Path, config: object) -> None:
    """Wrong vectors are worse than none."""
    path = write_model(tmp_path / "mine")
    (path / "modules.json").write_text(json.dumps([{"type": "x.Pooling", "path": "p"}]), encoding="utf-8")
    (path / "p").mkdir()
    (path / "p" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelUnusable) as caught:
        resolve(request(path))
    assert caught.value.reason == "MODEL_UNSUPPORTED"


def test_the_longest_input_is_the_smallest_of_what_is_stated(tmp_path: Path) -> None:
    """A stated limit beats the positions; a tokenizer's "no limit" is none; RoBERTa loses two positions."""
    path = write_model(tmp_path / "mine", max_position_embeddings=512)
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 256}', encoding="utf-8")
    (path / "tokenizer_config.json").write_text('{"model_max_length": 1e30}', encoding="utf-8")
    assert resolve(request(path)).card.max_input_tokens == 256
    roberta = write_model(tmp_path / "r", max_position_embeddings=514, model_type="roberta", pad_token_id=1)
    assert resolve(request(roberta)).card.max_input_tokens == 512
