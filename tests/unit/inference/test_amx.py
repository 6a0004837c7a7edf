"""The AMX engine: cutting batches anywhere, and, on a CPU that has AMX, the same vectors as transformers'."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference import machine
from inference.card import ModelKind
from inference.engines import Head, amx, checks
from inference.engines.amx import _Room
from inference.engines.choice import EnginePlan, Job, _open_reference
from inference.models import ModelRequest, resolve
from inference.padding import PaddedBatch, pad
from inference.testing import write_model
from inference.tokenizing import TextTokenizer, Truncation

_LONGEST = 160
_TEXTS = ["the cat sat on the mat", "dog", "far away the red dog ran " * 5, "one two three " * 16, "blue " * 150, "red"]
_WIDTHS = {
    "one tile a head": {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96},
    "two tiles a head": {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 160},
}


# -- where a batch is cut ---------------------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=200), threads=st.integers(1, 8))
def test_chunks_hold_every_input_once_and_whole(lengths: list[int], threads: int) -> None:
    """However long the inputs are: nothing is lost, twice, split, or in a chunk too large but by itself."""
    chunks = amx._Chunks.of(np.array(lengths, dtype=np.int32), threads=threads)
    texts = chunks.texts.tolist()
    assert texts[0] == 0
    assert texts[-1] == len(lengths)
    assert texts == sorted(set(texts))
    sizes = [sum(lengths[start:end]) for start, end in pairwise(texts)]
    assert sizes == np.diff(chunks.tokens).tolist()
    assert chunks.largest == max(sizes)
    for size, start, end in zip(sizes, texts, texts[1:], strict=False):
        assert size <= amx._CHUNK_TOKENS or end - start == 1


def test_a_small_batch_has_a_chunk_for_each_thread() -> None:
    """Two threads share a batch that would fit one chunk."""
    chunks = amx._Chunks.of(np.full(8, 20, dtype=np.int32), threads=2)
    assert chunks.texts.tolist() == [0, 4, 8]


# -- on a CPU with AMX ------------------------------------------------------------------------------------------------

needs_amx = pytest.mark.skipif(
    not (machine.cpu_flags() >= amx.CPU_FLAGS and amx.SOURCE.obtainable(Path("nowhere"))),
    reason="needs a CPU with AMX and a C compiler",
)


def _job(path: Path, head: Head, sizes: dict[str, int]) -> Job:
    """A random BERT of these sizes, saved as its authors would."""
    import torch
    import transformers

    architecture = "BertForSequenceClassification" if head is Head.LOGITS else "BertModel"
    write_model(path, architecture=architecture)
    vocabulary = json.loads((path / "config.json").read_text("utf-8"))["vocab_size"]
    config = transformers.BertConfig(
        vocab_size=vocabulary, num_labels=1, num_hidden_layers=2, max_position_embeddings=_LONGEST, **sizes
    )
    torch.manual_seed(7)
    model = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # a random model's outputs are all alike; these differ
    model.save_pretrained(path)
    kind = ModelKind.CROSS_ENCODER if head is Head.LOGITS else ModelKind.EMBEDDING
    resolved = resolve(ModelRequest(name=str(path), kind=kind))
    return Job(resolved, TextTokenizer.load(path, name="small", max_tokens=resolved.card.max_input_tokens), head)


def _batch(job: Job) -> PaddedBatch:
    tokenizer = job.tokenizer
    pairs = job.head is Head.LOGITS
    found = tokenizer.pairs("cat", _TEXTS, Truncation.END) if pairs else tokenizer.singles(_TEXTS, Truncation.END)
    return pad(found.inputs)


def _engine(job: Job, tmp_path: Path, *, threads: int = 1, exact: bool = False) -> amx.AmxEngine:
    return amx.AmxEngine(job.model, job.head, models_dir=tmp_path / "models", threads=threads, exact=exact)


@needs_amx
@pytest.mark.workers_env
@pytest.mark.parametrize("sizes", _WIDTHS.values(), ids=_WIDTHS)
@pytest.mark.parametrize("head", Head)
def test_every_head_agrees_with_transformers(tmp_path: Path, head: Head, sizes: dict[str, int]) -> None:
    """Texts of 3 to 152 tokens in one batch, for each width of an attention head; with pairs of numbers to 1e-4."""
    job = _job(tmp_path / "model", head, sizes)
    batch = _batch(job)

    def rows(engine: Any) -> list[Any]:
        return checks.comparable(engine.run(batch), batch, head)

    reference = rows(_open_reference(job, EnginePlan(models_dir=tmp_path, threads=1), "cpu"))
    low, _ = checks.agreement(reference, rows(_engine(job, tmp_path)))
    assert low >= 0.999
    for expected, found in zip(reference, rows(_engine(job, tmp_path, exact=True)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@needs_amx
@pytest.mark.workers_env
@pytest.mark.parametrize("exact", [False, True])
def test_company_and_threads_do_not_change_a_bit(tmp_path: Path, exact: bool) -> None:
    """A text's vector is the same number for number alone, in a batch, and with several threads."""
    job = _job(tmp_path / "model", Head.MEAN, _WIDTHS["one tile a head"])
    inputs = job.tokenizer.singles(_TEXTS * 9, Truncation.END).inputs
    engine, threaded = _engine(job, tmp_path, exact=exact), _engine(job, tmp_path, threads=3, exact=exact)
    together = engine.run(pad(inputs))
    np.testing.assert_array_equal(threaded.run(pad(inputs)), together)
    threaded.give_way(True)
    np.testing.assert_array_equal(threaded.run(pad(inputs)), together)
    for row, each in enumerate(inputs[: len(_TEXTS)]):
        np.testing.assert_array_equal(engine.run(pad([each]))[0], together[row])
    threaded.close()


@needs_amx
@pytest.mark.workers_env
def test_an_engine_that_gives_way_leaves_one_thread_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is told otherwise; and it never leaves out its last."""
    job = _job(tmp_path / "model", Head.MEAN, _WIDTHS["one tile a head"])
    inputs = pad(job.tokenizer.singles(_TEXTS * 60, Truncation.END).inputs)
    taken = list[object]()
    work = _Room.work

    def counted(room: _Room, *arguments: Any, **options: Any) -> None:
        taken.append(room)
        work(room, *arguments, **options)

    monkeypatch.setattr(_Room, "work", counted)

    def used(engine: Any) -> int:
        taken.clear()
        engine.run(inputs)
        return len(taken)

    single, threaded = _engine(job, tmp_path), _engine(job, tmp_path, threads=3)
    found = [used(threaded)]
    for yes in (True, False):
        threaded.give_way(yes)
        found.append(used(threaded))
    single.give_way(True)
    assert (found, used(single)) == ([3, 2, 3], 1)
    threaded.close()


@needs_amx
@pytest.mark.workers_env
def test_an_id_beyond_the_vocabulary_is_refused_and_not_read(tmp_path: Path) -> None:
    """The library trusts its caller, so its caller does not trust anybody."""
    job = _job(tmp_path / "model", Head.MEAN, _WIDTHS["one tile a head"])
    engine = _engine(job, tmp_path)
    batch = _batch(job)
    for wrong in (-1, job.model.card.vocabulary):
        batch.ids[1, 0] = wrong
        with pytest.raises(ValueError, match="token id"):
            engine.run(batch)
    long = pad(job.tokenizer.token_inputs([[5] * 400], Truncation.END).inputs)
    ids = np.full((1, _LONGEST + 1), 5, dtype=np.int64)
    longer = PaddedBatch(ids=ids, mask=np.ones_like(ids), type_ids=None, lengths=np.array([_LONGEST + 1]))
    with pytest.raises(ValueError, match="position"):
        engine.run(longer)
    assert np.isfinite(engine.run(long)).all()


@needs_amx
@pytest.mark.workers_env
def test_a_model_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    """Weights without a layer's bias are not run with what lies in memory."""
    from safetensors.numpy import load_file, save_file

    job = _job(tmp_path / "model", Head.MEAN, _WIDTHS["one tile a head"])
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.layer.1.output.dense.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"encoder\.layer\.1\.output\.dense\.bias"):
        _engine(job, tmp_path)


@needs_amx
@pytest.mark.workers_env
@pytest.mark.parametrize(
    ("name", "value"), [("intermediate_size", 32), ("intermediate_size", 4096), ("hidden_size", 32)]
)
def test_sizes_that_are_not_the_tensors_are_refused(tmp_path: Path, name: str, value: int) -> None:
    """The library computes with the config's sizes: other tensors would have it read and write beside them."""
    job = _job(tmp_path / "model", Head.MEAN, _WIDTHS["one tile a head"])
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), name: value, "num_attention_heads": 1}), "utf-8")
    with pytest.raises(ValueError, match="where the config says"):
        _engine(job, tmp_path)


@needs_amx
@pytest.mark.workers_env
def test_an_input_without_tokens_is_refused(tmp_path: Path) -> None:
    """A tokenizer that adds no special tokens makes nothing of a space; the batch's other inputs are not at fault."""
    engine = _engine(_job(tmp_path / "model", Head.MEAN, _WIDTHS["one tile a head"]), tmp_path)
    mask = np.array([[0, 0], [1, 1]], dtype=np.int64)
    batch = PaddedBatch(ids=np.full((2, 2), 5), mask=mask, type_ids=None, lengths=np.array([0, 2]))
    with pytest.raises(ValueError, match="no token"):
        engine.run(batch)


@needs_amx
@pytest.mark.workers_env
def test_a_lack_of_memory_harms_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever thread meets it: the error comes when no thread computes any more, and the next batch is right."""
    job = _job(tmp_path / "model", Head.MEAN, _WIDTHS["one tile a head"])
    engine = _engine(job, tmp_path, threads=3)
    batch = pad(job.tokenizer.singles(_TEXTS * 20, Truncation.END).inputs)
    plenty = amx._aligned
    for failing in (0, 1, 2):
        asked = iter(range(100))

        def scarce(count: int, dtype: type[Any], asked: Iterator[int] = asked, failing: int = failing) -> NDArray[Any]:
            if next(asked) == failing:
                raise MemoryError
            return plenty(count, dtype)

        engine._rooms = [amx._Room(engine._library, engine._weights) for _ in range(3)]
        monkeypatch.setattr(amx, "_aligned", scarce)
        with pytest.raises(MemoryError):
            engine.run(batch)
        monkeypatch.setattr(amx, "_aligned", plenty)
        np.testing.assert_array_equal(engine.run(batch), _engine(job, tmp_path).run(batch))
    engine.close()


def test_threads_that_cannot_start_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the middle of a batch, whose memory a thread that starts later would still use."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        amx._started(2)


@pytest.mark.workers_env
@pytest.mark.parametrize("wrong", [{"num_attention_heads": 0}, {"num_hidden_layers": None}, {"intermediate_size": -32}])
def test_an_odd_config_is_left_to_other_engines(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """What no size can be is no reason to fail: another engine says what is wrong with it."""
    job = _job(tmp_path / "model", Head.MEAN, _WIDTHS["one tile a head"])
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **wrong}), "utf-8")
    assert not amx.supports(job.model, tmp_path)


@pytest.mark.workers_env
def test_other_models_are_left_to_other_engines(tmp_path: Path) -> None:
    """A head that is no multiple of 32 wide cannot be computed in tiles, and is not offered."""
    job = _job(tmp_path / "model", Head.MEAN, {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96})
    assert not amx.supports(job.model, tmp_path)
