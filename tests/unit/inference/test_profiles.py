"""Where a model's prompts, pooling and dimensions come from, and which source stands above which."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from inference.card import ModelCard, ModelKind, Pooling
from inference.models import ModelRequest, resolve
from inference.profiles import Overrides, family_of, read_profile, reranking_profile
from inference.prompts import InputType, prefix
from inference.testing import write_model
from mesh.errors import InvalidRequest, ModelUnusable

QUERY, DOCUMENT = InputType.QUERY, InputType.DOCUMENT


def card(path: Path, overrides: Overrides | None = None) -> ModelCard:
    """The card of the model in ``path``, with all that is known of it."""
    request = ModelRequest(name=str(path), kind=ModelKind.EMBEDDING, overrides=overrides or Overrides())
    return resolve(request).card


def write_json(file: Path, value: object) -> None:
    """A JSON file, with its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


def write_modules(path: Path, *kinds: str, pooling: str = "cls") -> None:
    """What sentence-transformers writes about a model's modules."""
    write_json(path / "modules.json", [{"type": f"x.{kind}", "path": f"1_{kind}"} for kind in kinds])
    write_json(path / "1_Pooling" / "config.json", {"pooling_mode": pooling})


def test_a_model_of_no_family_is_what_its_files_say(tmp_path: Path) -> None:
    """No prompt, mean pooling, length 1."""
    found = card(write_model(tmp_path / "mine"))
    assert (found.prompts, found.pooling, found.normalize, found.profile) == ({}, Pooling.MEAN, True, "model")
    assert prefix(found, QUERY) == prefix(found, InputType.UNSPECIFIED) == ""


@pytest.mark.parametrize(
    ("name", "query", "document"),
    [
        ("e5-small-v2", "query: ", "passage: "),
        ("multilingual-e5-large", "query: ", "passage: "),
        ("bge-small-en-v1.5", "Represent this sentence for searching relevant passages: ", ""),
        ("bge-m3", "", ""),
        ("nomic-embed-text-v1.5", "search_query: ", "search_document: "),
        ("gte-base", "", ""),
        ("mxbai-embed-large-v1", "Represent this sentence for searching relevant passages: ", ""),
        ("snowflake-arctic-embed-m-v2.0", "query: ", ""),
    ],
)
def test_a_family_fills_in_what_files_leave_out(tmp_path: Path, name: str, query: str, document: str) -> None:
    """The makers publish prefixes on the model's page; the files of many hold none, or empty ones."""
    path = write_model(tmp_path / name)
    write_json(path / "config_sentence_transformers.json", {"prompts": {"query": "", "document": ""}})
    found = card(path)
    assert (prefix(found, QUERY), prefix(found, DOCUMENT)) == (query, document)


def test_instructions_of_qwen3_embedding() -> None:
    """A hub name tells the family as a directory does."""
    family = family_of("Qwen/Qwen3-Embedding-0.6B")
    assert family is not None
    assert family.embedding is not None
    assert family.embedding.prompts["query"].startswith("Instruct: ")
    assert family.embedding.prompts["query"].endswith("\nQuery:")


def test_a_models_own_files_stand_above_its_family(tmp_path: Path) -> None:
    """A fine-tuned e5 with prompts and pooling of its own is used with those."""
    path = write_model(tmp_path / "e5-small-ours")
    write_json(path / "config_sentence_transformers.json", {"prompts": {"query": "ask: "}})
    write_modules(path, "Transformer", "Pooling")
    found = card(path)
    assert (found.prompts, found.pooling, found.profile) == ({"query": "ask: "}, Pooling.CLS, "model")


def test_a_family_says_how_to_pool_where_no_file_does(tmp_path: Path) -> None:
    """Mean would be silently worse for a model trained with CLS."""
    assert card(write_model(tmp_path / "bge-base-en-v1.5")).pooling is Pooling.CLS


def test_file_and_settings_stand_above_all(tmp_path: Path) -> None:
    """Settings above the file, the file above the model; what they leave out stays, and the card tells the sources."""
    path = write_model(tmp_path / "e5-small-v2")
    file = tmp_path / "ours.toml"
    file.write_text(
        '[embedding]\npooling = "lasttoken"\nnormalize = false\nmatryoshka_dimensions = [4, 2, 64]\n'
        'default_prompt = "document"\n[embedding.prompts]\nquery = "file: "\nclustering = ""\n',
        encoding="utf-8",
    )
    found = card(path, Overrides(file=file, prompts={"query": "set: "}))
    assert (found.pooling, found.normalize, found.matryoshka_dimensions) == (Pooling.LAST, False, (4, 2))
    assert prefix(found, QUERY) == "set: "
    assert prefix(found, InputType.UNSPECIFIED) == "passage: "
    assert prefix(found, InputType.CLUSTERING) == ""
    assert found.profile == "model, family e5, file ours.toml, settings"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "[embedding.prompt]\nquery = 'q'", "prompt"),
        ("a.toml", "[embedding]\npooling = 'median'", "pooling"),
        ("a.toml", "[embedding]\ndefault_prompt = 'query'", "There are: none"),
        ("a.toml", "embedding = {", "TOML"),
        ("a.json", "[embedding]", "JSON"),
        ("a.json", '{"embedding": {"normalize": "perhaps"}}', "normalize"),
        ("missing.toml", None, "missing.toml"),
    ],
)
def test_a_wrong_profile_says_what_is_wrong(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    """A misspelt prefix that is ignored would ruin an index."""
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ModelUnusable) as refused:
        card(write_model(tmp_path / "mine"), Overrides(file=tmp_path / name))
    assert refused.value.reason == "PROFILE_INVALID"
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("kinds", "similarity", "expected"),
    [
        (("Transformer", "Pooling", "Normalize"), "dot", True),
        (("Transformer", "Pooling"), "dot", False),
        (("Transformer", "Pooling"), "cosine", True),
        (("Transformer", "Pooling"), None, True),
    ],
)
def test_lengths_are_kept_where_they_mean_something(
    tmp_path: Path, kinds: tuple[str, ...], similarity: str | None, expected: bool
) -> None:
    """A model that compares by the plain dot product and does not normalise is not normalised for it."""
    path = write_model(tmp_path / "mine")
    write_modules(path, *kinds)
    write_json(path / "config_sentence_transformers.json", {"similarity_fn_name": similarity})
    assert card(path).normalize is expected


def test_pooling_without_the_prompt_is_refused(tmp_path: Path) -> None:
    """Wrong vectors are worse than none."""
    path = write_model(tmp_path / "mine")
    write_modules(path, "Pooling")
    write_json(path / "1_Pooling" / "config.json", {"pooling_mode": "mean", "include_prompt": False})
    with pytest.raises(ModelUnusable) as refused:
        card(path)
    assert refused.value.reason == "MODEL_UNSUPPORTED"


def test_a_decoder_that_says_how_it_pools_is_an_embedder(tmp_path: Path) -> None:
    """Qwen3-Embedding keeps the name of the language model it was made of."""
    path = write_model(tmp_path / "mine", architecture="Qwen3ForCausalLM")
    with pytest.raises(ModelUnusable):
        card(path)
    write_modules(path, "Transformer", "Pooling", "Normalize", pooling="lasttoken")
    assert card(path).pooling is Pooling.LAST


def test_prompts_by_the_names_that_models_use(tmp_path: Path) -> None:
    """A document's prompt may be called passage, a query's retrieval.query; any other goes by its own name."""
    path = write_model(tmp_path / "mine")
    own = {"passage": "p: ", "retrieval.query": "q: ", "STS": "s: ", "s2p": "x: "}
    write_json(path / "config_sentence_transformers.json", {"prompts": own, "default_prompt_name": "s2p"})
    found = card(path)
    assert [prefix(found, each) for each in (DOCUMENT, QUERY, InputType.SIMILARITY)] == ["p: ", "q: ", "s: "]
    assert prefix(found, InputType.UNSPECIFIED) == prefix(found, InputType.UNSPECIFIED, "s2p") == "x: "
    assert prefix(found, InputType.CLASSIFICATION) == ""
    with pytest.raises(InvalidRequest, match=r"query, document, .*passage, retrieval.query, STS, s2p"):
        prefix(found, InputType.UNSPECIFIED, "poem")
    with pytest.raises(InvalidRequest):
        prefix(found, QUERY, "s2p")


def reranking(**changes: Any) -> dict[str, Any]:
    """A reranking profile that is right, but for ``changes``."""
    golden = [{"query": "q", "relevant": "r", "irrelevant": "i", "margin": 0.5}]
    return {"template": ["a {query}", "b {document}"], "yes": "yes", "no": "no", "golden": golden, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"template": ["{query}"]},
        {"template": ["{query} {document} after"]},
        {"template": ["{query}", "{query} {document}"]},
        {"template": ["{instruction} {query} {document}"]},
        {"golden": []},
        {"yess": "yes"},
    ],
)
def test_a_reranking_profile_that_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Each placeholder once, the document last in its piece, an instruction where one is used, and a golden check."""
    write_json(tmp_path / "right.json", {"reranking": reranking()})
    assert read_profile(tmp_path / "right.json").reranking is not None
    write_json(tmp_path / "wrong.json", {"reranking": reranking(**changes)})
    with pytest.raises(ModelUnusable) as refused:
        read_profile(tmp_path / "wrong.json")
    assert refused.value.reason == "PROFILE_INVALID"


def test_how_a_language_model_is_asked(tmp_path: Path) -> None:
    """By its family, by a file above it, with the operator's instruction above both; unknown models are refused."""
    write_json(
        tmp_path / "ours.json",
        {"reranking": reranking(template=["{instruction} {query}", "{document}"], instruction="file")},
    )
    _, source = reranking_profile("Qwen/Qwen3-Reranker-4B", Overrides(), setting="S")
    assert source == "family qwen3-reranker"
    overrides = Overrides(file=tmp_path / "ours.json", instruction="mine")
    profile, source = reranking_profile("Qwen/Qwen3-Reranker-4B", overrides, setting="S")
    assert (profile.instruction, source) == ("mine", "file ours.json, settings")
    with pytest.raises(ModelUnusable, match="RERANKING_MODEL_PROFILE") as refused:
        reranking_profile("owner/llama", Overrides(), setting="RERANKING_MODEL_PROFILE")
    assert refused.value.reason == "PROFILE_MISSING"


def test_the_documented_profiles_are_profiles(tmp_path: Path) -> None:
    """What docs/models.md shows can be copied as it is."""
    text = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    shown = [textwrap.dedent(block.partition("```")[0]) for block in text.split("```toml\n")[1:]]
    (tmp_path / "both.toml").write_text("\n".join(shown), encoding="utf-8")
    found = read_profile(tmp_path / "both.toml")
    assert found.embedding is not None
    assert found.embedding.prompts["query"] == "query: "
    assert found.reranking is not None
    assert found.reranking.scores
