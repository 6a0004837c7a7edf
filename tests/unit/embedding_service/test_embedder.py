"""The rules of a request, and what an answer says beside its vectors."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import pytest

from embedding_service.embedder import Embedder, EmbeddingRequest, Embeddings, fingerprint_of
from inference.card import Pooling
from inference.prompts import InputType
from inference.runner import RunnerLimits
from inference.testing import fake_loaded_model
from inference.tokenizing import Truncation
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, ModelUnusable, NotFound, PayloadTooLarge, WrongState

LIMITS = RunnerLimits(items_per_request=50, tokens_per_request=400, queued_tokens=1000, batch_tokens=32)


@pytest.fixture
async def embedder(tmp_path: Path) -> AsyncIterator[Embedder]:
    """An embedder of 8 dimensions over the mean of one-hot token states; the model reads 16 tokens."""
    made = Embedder(fake_loaded_model(tmp_path), LIMITS, aliases=("text-embedding-test",), dimensions=(4,))
    made.start()
    yield made
    await made.stop()


async def embed(embedder: Embedder, *texts: str, **options: Any) -> Embeddings:
    """The answer to one request of texts."""
    return await embedder.embed(EmbeddingRequest(texts=texts, **options), deadline=Deadline.after(10))


async def test_order_for_any_mix_of_lengths(embedder: Embedder) -> None:
    """Each vector is its own text's, though batches are sorted by length and shared with other callers."""
    texts = [" ".join(["cat", "dog", "on", "mat"][: 1 + (7 * position) % 4]) for position in range(40)]
    alone = {text: (await embed(embedder, text)).vectors[0] for text in set(texts)}
    for found in await asyncio.gather(*(embed(embedder, *texts) for _ in range(3))):
        np.testing.assert_array_equal(found.vectors, np.stack([alone[text] for text in texts]))


async def test_vectors_have_length_one(embedder: Embedder) -> None:
    """Unless raw vectors are asked for."""
    scaled = await embed(embedder, "cat sat", "dog")
    raw = await embed(embedder, "cat sat", "dog", normalize=False)
    np.testing.assert_allclose(np.linalg.norm(scaled.vectors, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(raw.vectors.sum(axis=1), 1.0, rtol=1e-6)


async def test_a_cut_vector_is_scaled_again(embedder: Embedder) -> None:
    """A prefix of a vector has a length that means nothing, so it is scaled even where raw vectors are asked for."""
    found = await embed(embedder, "cat sat on", dimensions=4, normalize=False)
    assert found.vectors.shape == (1, 4)
    np.testing.assert_allclose(np.linalg.norm(found.vectors), 1.0, rtol=1e-6)


async def test_dimensions(embedder: Embedder) -> None:
    """Only what the model or the operator allows: elsewhere a cut would be silently worse."""
    assert (await embed(embedder, "cat", dimensions=8)).vectors.shape == (1, 8)
    with pytest.raises(WrongState, match="8, 4"):
        await embed(embedder, "cat", dimensions=5)
    for outside in (0, 9):
        with pytest.raises(InvalidRequest) as refused:
            await embed(embedder, "cat", dimensions=outside)
        assert refused.value.param == "dimensions"


async def test_nothing_to_embed_is_refused(embedder: Embedder) -> None:
    """No input, both kinds of input, or an empty one."""
    with pytest.raises(InvalidRequest):
        await embed(embedder)
    with pytest.raises(InvalidRequest):
        await embed(embedder, "cat", token_inputs=((4,),))
    with pytest.raises(InvalidRequest) as refused:
        await embed(embedder, "cat", "")
    assert (refused.value.reason, refused.value.param) == ("EMPTY_INPUT", "input[1]")


async def test_limits(embedder: Embedder) -> None:
    """Too many inputs, or too many tokens in few of them."""
    with pytest.raises(PayloadTooLarge) as refused:
        await embed(embedder, *["cat"] * 51)
    assert refused.value.reason == "TOO_MANY_INPUTS"
    with pytest.raises(PayloadTooLarge) as refused:
        await embed(embedder, *["a " * 14] * 30)
    assert refused.value.reason == "TOO_MANY_TOKENS"


async def test_names(embedder: Embedder) -> None:
    """The model answers to its name, with and without its owner, its aliases and no name."""
    for name in ("", "owner/fake", "fake", "text-embedding-test"):
        assert len((await embed(embedder, "cat", model=name)).vectors) == 1
    with pytest.raises(NotFound, match="owner/fake, fake, text-embedding-test"):
        await embed(embedder, "cat", model="text-embedding-3-small")


async def test_token_inputs_are_the_models_own_ids(embedder: Embedder) -> None:
    """Ids embed like the text they came from; ids outside the vocabulary are refused by place."""
    vocabulary = embedder.loaded.tokenizer
    ids = vocabulary.singles(["cat sat"], Truncation.END).inputs[0].ids[1:-1]
    request = EmbeddingRequest(token_inputs=(ids,))
    found = await embedder.embed(request, deadline=Deadline.after(10))
    np.testing.assert_array_equal(found.vectors, (await embed(embedder, "cat sat")).vectors)
    assert found.characters == 0
    with pytest.raises(InvalidRequest) as refused:
        unknown = EmbeddingRequest(token_inputs=((4,), (vocabulary.vocabulary,)))
        await embedder.embed(unknown, deadline=Deadline.after(10))
    assert refused.value.param == "input[1]"


class WatchedIds(Sequence[int]):
    """So many ids of one word, which record by which threads they are copied, and how many of them."""

    def __init__(self, count: int, threads: list[threading.Thread], copied: list[int]) -> None:
        self._ids = (4,) * count
        self._threads = threads
        self._copied = copied

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[int]: ...
    def __getitem__(self, at: int | slice) -> int | Sequence[int]:
        found = self._ids[at]
        self._threads.append(threading.current_thread())
        self._copied.append(len(found) if isinstance(found, tuple) else 1)
        return found


async def test_many_ids_are_read_off_the_event_loop_and_no_more_than_the_model_reads(tmp_path: Path) -> None:
    """Health is answered while millions of ids arrive, most of which are cut."""
    threads: list[threading.Thread] = []
    copied: list[int] = []
    limits = replace(LIMITS, items_per_request=500, tokens_per_request=8_000, queued_tokens=8_000, batch_tokens=8_000)
    embedder = Embedder(fake_loaded_model(tmp_path), limits)
    embedder.start()
    ids = [WatchedIds(10_000, threads, copied) for _ in range(500)]
    found = await embedder.embed(EmbeddingRequest(token_inputs=ids), deadline=Deadline.after(30))
    assert (found.tokens, len(found.truncated)) == (8_000, 500)
    assert threading.main_thread() not in threads
    assert sum(copied) == 500 * 14
    await embedder.stop()


async def test_too_many_ids_are_refused_unread(embedder: Embedder) -> None:
    """Their number tells; nothing is copied to find out."""
    threads: list[threading.Thread] = []
    ids = [WatchedIds(14, threads, []) for _ in range(26)]
    with pytest.raises(PayloadTooLarge) as refused:
        await embedder.embed(EmbeddingRequest(token_inputs=ids), deadline=Deadline.after(10))
    assert refused.value.reason == "TOO_MANY_TOKENS"
    assert not threads


async def test_long_inputs(embedder: Embedder) -> None:
    """Cut at the end or the start and named, or refused."""
    long = "cat " + "a " * 20 + "dog"
    for truncation, kept in ((Truncation.END, "cat " + "a " * 13), (Truncation.START, "a " * 13 + "dog")):
        found = await embed(embedder, "on", long, truncation=truncation)
        assert found.truncated == (1,)
        assert found.tokens == 3 + 16
        np.testing.assert_array_equal(found.vectors[1], (await embed(embedder, kept)).vectors[0])
    with pytest.raises(InvalidRequest) as refused:
        await embed(embedder, "on", long, truncation=Truncation.REFUSE)
    assert refused.value.param == "input[1]"


async def test_prompts_by_input_type(tmp_path: Path) -> None:
    """A model that states prompts reads them before the text, for the input type that has one."""
    prompts = '{"prompts": {"query": "the ", "document": ""}}'
    (tmp_path / "config_sentence_transformers.json").write_text(prompts, encoding="utf-8")
    embedder = Embedder(fake_loaded_model(tmp_path), LIMITS)
    embedder.start()
    prompted = await embed(embedder, "cat", input_type=InputType.QUERY)
    np.testing.assert_array_equal(prompted.vectors, (await embed(embedder, "the cat")).vectors)
    plain = await embed(embedder, "cat", input_type=InputType.DOCUMENT)
    np.testing.assert_array_equal(plain.vectors, (await embed(embedder, "cat")).vectors)
    await embedder.stop()


async def test_every_input_has_its_count_of_tokens(embedder: Embedder) -> None:
    """Special tokens included, cut inputs as cut; characters are the caller's own."""
    found = await embed(embedder, "cat", "cat sat", "a " * 40)
    assert found.input_tokens == (3, 4, 16)
    assert found.tokens == sum(found.input_tokens)
    assert found.characters == len("cat" + "cat sat" + "a " * 40)


def test_a_fingerprint_is_of_whatever_decides_a_vector(tmp_path: Path) -> None:
    """The same for the same model, wherever its files lie; another for each fact that changes vectors or refusals."""
    loaded = fake_loaded_model(tmp_path / "one")
    model, card = loaded.model, loaded.model.card
    again = fake_loaded_model(tmp_path / "two")
    assert fingerprint_of(again, [4]) == fingerprint_of(loaded, [4])
    changed = [
        replace(loaded, model=replace(model, revision="another")),
        replace(loaded, model=replace(model, name="another/name")),
        replace(loaded, model=replace(model, card=replace(card, max_input_tokens=8))),
        replace(loaded, model=replace(model, card=replace(card, prompts={"query": "query: "}))),
        replace(loaded, model=replace(model, card=replace(card, pooling=Pooling.CLS))),
        replace(loaded, verdict=replace(loaded.verdict, engine="another")),
    ]
    prints = {fingerprint_of(each, [4]) for each in (loaded, *changed)}
    assert len(prints | {fingerprint_of(loaded, []), fingerprint_of(loaded, [4, 2])}) == len(changed) + 3


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json"])
def test_a_fingerprint_is_of_what_the_files_beside_the_weights_say(file: str, tmp_path: Path) -> None:
    """A local model's revision is of its weights alone; another tokenizer or activation gives other vectors too."""
    loaded = fake_loaded_model(tmp_path)
    before = Embedder(loaded, LIMITS).fingerprint
    content = json.loads((tmp_path / file).read_text(encoding="utf-8"))
    (tmp_path / file).write_text(json.dumps(content | {"changed": True}), encoding="utf-8")
    assert Embedder(loaded, LIMITS).fingerprint != before


async def test_a_prompt_by_its_own_name(tmp_path: Path) -> None:
    """Any prompt of the model can be asked for, and one that is not there is refused with those that are."""
    prompts = '{"prompts": {"s2p": "the "}}'
    (tmp_path / "config_sentence_transformers.json").write_text(prompts, encoding="utf-8")
    embedder = Embedder(fake_loaded_model(tmp_path), LIMITS)
    embedder.start()
    prompted = await embed(embedder, "cat", prompt_name="s2p")
    np.testing.assert_array_equal(prompted.vectors, (await embed(embedder, "the cat")).vectors)
    assert prompted.characters == 3
    with pytest.raises(InvalidRequest, match="s2p") as refused:
        await embed(embedder, "cat", prompt_name="poem")
    assert refused.value.reason == "UNKNOWN_PROMPT"
    await embedder.stop()


async def test_no_truncation_takes_the_prompt(tmp_path: Path) -> None:
    """Whichever end of a long text goes, the model reads the prompt."""
    (tmp_path / "config_sentence_transformers.json").write_text('{"prompts": {"query": "the "}}', encoding="utf-8")
    embedder = Embedder(fake_loaded_model(tmp_path), LIMITS)
    embedder.start()
    long = "cat " + "a " * 20 + "dog"
    for truncation, kept in ((Truncation.END, "the cat " + "a " * 12), (Truncation.START, "the " + "a " * 12 + "dog")):
        found = await embed(embedder, long, truncation=truncation, input_type=InputType.QUERY)
        np.testing.assert_array_equal(found.vectors, (await embed(embedder, kept)).vectors)
        assert found.truncated == (0,)
    await embedder.stop()


async def test_token_ids_take_no_prompt(tmp_path: Path) -> None:
    """Ids of a type that has a prompt are refused rather than embedded without it."""
    (tmp_path / "config_sentence_transformers.json").write_text('{"prompts": {"query": "the "}}', encoding="utf-8")
    embedder = Embedder(fake_loaded_model(tmp_path), LIMITS)
    embedder.start()
    for input_type in (InputType.UNSPECIFIED, InputType.DOCUMENT):
        request = EmbeddingRequest(token_inputs=((4,),), input_type=input_type)
        assert len((await embedder.embed(request, deadline=Deadline.after(10))).vectors) == 1
    with pytest.raises(InvalidRequest) as refused:
        request = EmbeddingRequest(token_inputs=((4,),), input_type=InputType.QUERY)
        await embedder.embed(request, deadline=Deadline.after(10))
    assert refused.value.param == "input_type"
    await embedder.stop()


async def test_lengths_as_the_profile_says(tmp_path: Path) -> None:
    """A profile that keeps lengths is followed where the request leaves it open."""
    loaded = fake_loaded_model(tmp_path)
    card = replace(loaded.model.card, normalize=False)
    embedder = Embedder(replace(loaded, model=replace(loaded.model, card=card)), LIMITS)
    embedder.start()
    open_, wanted = await embed(embedder, "cat sat"), await embed(embedder, "cat sat", normalize=True)
    np.testing.assert_allclose(open_.vectors.sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(wanted.vectors), 1.0, rtol=1e-6)
    await embedder.stop()


def test_a_prompt_that_fills_the_model_is_refused(tmp_path: Path) -> None:
    """Every vector would be the prompt's."""
    prompts = {"prompts": {"query": "the cat sat on " * 4}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts), encoding="utf-8")
    with pytest.raises(ModelUnusable) as refused:
        Embedder(fake_loaded_model(tmp_path), LIMITS)
    assert refused.value.reason == "PROFILE_INVALID"
