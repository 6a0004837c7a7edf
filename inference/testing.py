"""Fakes and small models for the tests of whatever stands on ``inference``."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inference.card import ModelCard, ModelKind
from inference.engines import DeviceOutOfMemory, EngineTraits, FloatArray, Head
from inference.engines.choice import Verdict
from inference.loading import LoadedModel
from inference.models import ModelSource, ResolvedModel
from inference.padding import PaddedBatch
from inference.tokenizing import TextTokenizer

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_PHRASE = "a b c d e f g h i j the cat sat on mat dog ran far away red blue green one two three"
WORDS = tuple(_PHRASE.split(" "))
_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class FakeWork:
    """Work with a length and a value to recognise its result by."""

    tokens: int
    value: int


class GatedRun:
    """A batcher's ``run`` that doubles values, records its batches and stops at a gate until it is opened.

    Values in ``poison`` fail every batch they are in; ``memory_tokens`` is what fits at once, padding included.
    """

    def __init__(self, *, is_open: bool = True, poison: Sequence[int] = (), memory_tokens: int = 10**9) -> None:
        self.batches: list[list[FakeWork]] = []
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self._passes = threading.Semaphore(0)
        self._poison = frozenset(poison)
        self._memory_tokens = memory_tokens
        if is_open:
            self.gate.set()

    def let_through(self, batches: int) -> None:
        """Let so many batches pass the closed gate."""
        self._passes.release(batches)

    def __call__(self, works: Sequence[FakeWork]) -> list[int]:
        """Double every value."""
        self.batches.append(list(works))
        self.entered.release()
        while not self.gate.wait(timeout=0.002) and not self._passes.acquire(blocking=False):
            pass
        if len(works) * max(work.tokens for work in works) > self._memory_tokens:
            raise DeviceOutOfMemory
        if any(work.value in self._poison for work in works):
            raise ValueError("poisoned")
        return [2 * work.value for work in works]


class FakeEngine:
    """Token states that tell which token they belong to: one-hot by id; a logit is the number of tokens."""

    traits = EngineTraits(name="fake", precision="float32", device="cpu")

    def __init__(self, head: Head) -> None:
        self._head = head
        self.batches: list[PaddedBatch] = []

    def run(self, batch: PaddedBatch) -> FloatArray:
        """See Engine."""
        from inference.pooling import pooled

        self.batches.append(batch)
        if self._head is Head.LOGITS:
            return batch.lengths[:, None].astype(np.float32)
        states = np.eye(_DIMENSIONS, dtype=np.float32)[batch.ids % _DIMENSIONS]
        return pooled(states, batch, self._head)

    def give_way(self, yes: bool) -> None:
        """See Engine. It has one thread."""

    def close(self) -> None:
        """See Engine."""


class GatedEngine(FakeEngine):
    """A FakeEngine that stops inside each batch until its gate is open, or until one batch is let through."""

    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self.gate = threading.Event()
        self.gate.set()
        self._passes = threading.Semaphore(0)

    @classmethod
    def loaded(cls, path: Path, *, head: Head = Head.MEAN) -> tuple[LoadedModel, GatedEngine]:
        """A loaded model over such an engine, made in ``path``, and the engine."""
        engine = cls(head)
        return replace(fake_loaded_model(path, head=head), engine=engine), engine

    def let_through(self, batches: int) -> None:
        """Let so many batches pass the closed gate."""
        self._passes.release(batches)

    def words(self) -> list[str]:
        """The first word of every text of every batch so far, in order."""
        return [WORDS[int(row[1]) - len(SPECIALS)] for batch in self.batches for row in batch.ids]

    def run(self, batch: PaddedBatch) -> FloatArray:
        """See Engine."""
        found = super().run(batch)
        while not self.gate.wait(timeout=0.002) and not self._passes.acquire(blocking=False):
            pass
        return found


class FaultyEngine(FakeEngine):
    """A FakeEngine that does, batch by batch, what the first line of a file says.

    ==================  ================================================================================
    ``healthy``         compute; so does a file that is missing or empty
    ``slow:SECONDS``    compute, and take so many seconds for each token of the batch, padding included
    ``fail``            raise, as every call into a poisoned CUDA context does
    ``fail:WORD``       raise where the batch holds this word of WORDS, otherwise compute
    ``out-of-memory``   raise DeviceOutOfMemory
    ``hang``            never return from this batch, whatever the file says later
    ==================  ================================================================================

    Whoever changes the file should write another one and rename it, so that no batch meets half a line.
    """

    def __init__(self, head: Head, fault_file: Path) -> None:
        super().__init__(head)
        self._fault_file = fault_file

    def run(self, batch: PaddedBatch) -> FloatArray:
        """See Engine."""
        fault, _, argument = self._fault().partition(":")
        if fault == "hang":
            threading.Event().wait()
        elif fault == "slow":
            time.sleep(float(argument) * batch.ids.size)
        elif fault == "out-of-memory":
            raise DeviceOutOfMemory
        elif fault == "fail" and (not argument or (batch.ids == token_id(argument)).any()):
            raise RuntimeError("an illegal memory access was encountered")
        elif fault not in ("healthy", "fail"):
            raise ValueError(f"{self._fault_file} says {fault!r}, which is no fault")
        return super().run(batch)

    def _fault(self) -> str:
        try:
            return self._fault_file.read_text(encoding="utf-8").strip() or "healthy"
        except FileNotFoundError:
            return "healthy"


def token_id(word: str) -> int:
    """The id of one of WORDS in the tokenizer of ``write_tokenizer``."""
    return len(SPECIALS) + WORDS.index(word)


def write_tokenizer(path: Path) -> None:
    """A ``tokenizer.json`` that knows WORDS and frames texts as BERT does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {token: index for index, token in enumerate((*SPECIALS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIALS[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.save(str(path / "tokenizer.json"))


def write_safetensors(file: Path, data: bytes = bytes(16)) -> None:
    """A whole safetensors file with one float32 tensor of ``data``."""
    header = {"weight": {"dtype": "F32", "shape": [len(data) // 4], "data_offsets": [0, len(data)]}}
    raw = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def write_model(path: Path, *, architecture: str = "BertModel", **config: object) -> Path:
    """A model directory whose files are right and whose weights are nothing."""
    path.mkdir(parents=True, exist_ok=True)
    write_tokenizer(path)
    write_safetensors(path / "model.safetensors")
    stated = {
        "model_type": "bert",
        "architectures": [architecture],
        "hidden_size": _DIMENSIONS,
        "vocab_size": len(SPECIALS) + len(WORDS),
        "max_position_embeddings": 16,
        **config,
    }
    (path / "config.json").write_text(json.dumps(stated), encoding="utf-8")
    return path


def faulty_loaded_model(path: Path, fault_file: Path, *, head: Head = Head.MEAN) -> LoadedModel:
    """A loaded model over a FaultyEngine of unknown speed that reads up to 512 tokens, made in ``path``."""
    loaded = fake_loaded_model(path, head=head, max_position_embeddings=512)
    verdict = replace(loaded.verdict, engine="faulty", tokens_per_second=0.0, batch_tokens=1024)
    return replace(loaded, engine=FaultyEngine(head, fault_file), verdict=verdict)


def fake_loaded_model(path: Path, *, head: Head = Head.MEAN, name: str = "owner/fake", **card: object) -> LoadedModel:
    """A loaded model over a FakeEngine and the tokenizer of ``write_tokenizer``, made in ``path``."""
    kind = ModelKind.CROSS_ENCODER if head is Head.LOGITS else ModelKind.EMBEDDING
    architecture = "BertForSequenceClassification" if head is Head.LOGITS else "BertModel"
    write_model(path, architecture=architecture, num_labels=1, **card)
    read = ModelCard.read(path, name=name, kind=kind)
    model = ResolvedModel(path=path, name=name, revision="r1", source=ModelSource.PATH, sha256="0" * 64, card=read)
    tokenizer = TextTokenizer.load(path, name=name, max_tokens=read.max_input_tokens)
    verdict = Verdict(
        engine="fake",
        device="cpu",
        min_cosine=1.0,
        mean_cosine=1.0,
        texts_per_second=1e6,
        tokens_per_second=1e7,
        batch_tokens=64,
    )
    return LoadedModel(model=model, tokenizer=tokenizer, engine=FakeEngine(head), head=head, verdict=verdict)
