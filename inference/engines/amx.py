"""The AMX engine: BERT encoders in C for CPUs with tile instructions, without padding and without torch.

Products are of bfloat16 numbers, or, where that is not exact enough, of pairs of them: three times the products, and
nearly float32's results.

A batch is cut into chunks of about 320 tokens, whose values stay in a core's cache from the first layer to the last.
Each thread takes the next chunk when it is done with one: none waits for another within the model, so that a core
which the gateway needs for a moment delays one chunk and not every operator.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from inference import machine, weights
from inference.engines import EngineTraits, FloatArray, Head
from inference.engines.bert_config import BertConfig, bert_config
from inference.engines.compiled import CSource
from inference.padding import Int64Array, PaddedBatch
from inference.pooling import pooled

if TYPE_CHECKING:
    from inference.models import ResolvedModel

SOURCE = CSource(
    Path(__file__).with_name("bert_amx.c"),
    (
        "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mfma", "-mamx-tile", "-mamx-bf16",
    ),
    included=(Path(__file__).with_name("bert_numbers.h"),),
)  # fmt: skip
CPU_FLAGS = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "fma", "amx_tile", "amx_bf16"})
"""What /proc/cpuinfo has to list."""
_BLOCK = 32
"""Widths are multiples of it: the engine computes 32 × 32 numbers at a time."""
_CHUNK_TOKENS = 320
"""The values of so many tokens, 2 MB with 384 dimensions, and the weights in use fit a core's second-level cache."""
_ALIGNMENT = 64
_START_SECONDS = 10.0


def supports(model: ResolvedModel, models_dir: Path) -> bool:
    """Whether this CPU has the instructions, the library is there or can be compiled, and the model is such a BERT."""
    if not machine.cpu_flags() >= CPU_FLAGS or not SOURCE.obtainable(models_dir):
        return False
    config = bert_config(model)
    return config is not None and _fits(config)


def _fits(config: BertConfig) -> bool:
    widths = (config.hidden, config.inner, config.hidden // config.heads)
    return config.hidden % config.heads == 0 and all(width % _BLOCK == 0 for width in widths)


class _Pool(IntEnum):
    """What the library returns."""

    STATES = 0
    MEAN = 1
    FIRST = 2


_POOL_OF = {Head.MEAN: _Pool.MEAN, Head.CLS: _Pool.FIRST, Head.LOGITS: _Pool.FIRST}
_FieldList = Sequence[tuple[str, Any]]


class _Layer(ctypes.Structure):
    _fields_: ClassVar[_FieldList] = [
        (name, ctypes.c_void_p)
        for name in (
            "qkv_bias", "out_bias", "up_bias", "down_bias",
            "attention_norm_weight", "attention_norm_bias", "output_norm_weight", "output_norm_bias",
            "qkv", "out", "up", "down",
        )
    ]  # fmt: skip


class _Model(ctypes.Structure):
    _fields_: ClassVar[_FieldList] = [
        *((name, ctypes.c_int32) for name in ("layers", "hidden", "heads", "inner", "planes")),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("words", "positions", "types", "norm_weight", "norm_bias", "layer")),
    ]


class _Batch(ctypes.Structure):
    _fields_: ClassVar[_FieldList] = [
        *((name, ctypes.c_void_p) for name in ("ids", "types", "places", "lengths", "texts", "tokens", "result")),
        *((name, ctypes.c_int32) for name in ("chunks", "next", "pool")),
    ]


class AmxEngine:
    """A BERT encoder on CPU cores with AMX.

    Args:
        models_dir: where the compiled library is kept.
        threads: that take chunks of a batch.
        exact: compute with pairs of bfloat16 numbers.

    Raises:
        CannotCompile: there is no compiler, or it knows no AMX.
        ValueError: the model is no BERT that this engine computes, or lacks a tensor.
        OSError: the CPU has no AMX, or the kernel does not let this process use it.
    """

    def __init__(
        self, model: ResolvedModel, head: Head, *, models_dir: Path, threads: int, exact: bool = False
    ) -> None:
        config = bert_config(model)
        if config is None or not _fits(config):
            raise ValueError(f"{model.name} is no BERT whose widths are multiples of {_BLOCK}")
        if not machine.cpu_flags() >= CPU_FLAGS:
            raise OSError("this CPU lacks " + ", ".join(sorted(CPU_FLAGS - machine.cpu_flags())))
        self._library = _Library(SOURCE.built(models_dir))
        self._head = head
        self._weights = _Weights(model, config, self._library, planes=2 if exact else 1)
        self._rooms = [_Room(self._library, self._weights) for _ in range(max(1, threads))]
        self._threads = len(self._rooms)
        self._classifier = _Classifier(self._weights) if head is Head.LOGITS else None
        self._weights.forget_files()
        self._helpers = _started(len(self._rooms) - 1) if len(self._rooms) > 1 else None
        name, precision = ("amx-bf16x3", "bfloat16x3") if exact else ("amx-bf16", "bfloat16")
        self.traits = EngineTraits(name=name, precision=precision, device="cpu")

    def run(self, batch: PaddedBatch) -> FloatArray:
        """See Engine."""
        found = self._computed(batch, _POOL_OF.get(self._head, _Pool.STATES))
        if self._classifier is not None:
            return self._classifier(found)
        if self._head in _POOL_OF:
            return found
        states = np.zeros((*batch.ids.shape, self._weights.config.hidden), dtype=np.float32)
        states[batch.mask.astype(bool)] = found
        return pooled(states, batch, self._head)

    def give_way(self, yes: bool) -> None:
        """See Engine."""
        self._threads = max(1, len(self._rooms) - yes)

    def close(self) -> None:
        """See Engine."""
        if self._helpers is not None:
            self._helpers.shutdown()
        self._rooms.clear()
        del self._weights

    def _computed(self, batch: PaddedBatch, pool: _Pool) -> FloatArray:
        """Rows of token states, laid end to end, or one row for each input."""
        real = batch.mask.astype(bool)
        if int(batch.lengths.min()) < 1 or not np.array_equal(real.sum(axis=1), batch.lengths):
            raise ValueError("an input has no token, or its mask is not what its length says")
        ids = batch.ids[real]
        places = np.broadcast_to(np.arange(batch.ids.shape[1], dtype=np.int64), batch.ids.shape)[real]
        types = None if batch.type_ids is None else batch.type_ids[real]
        self._weights.require_known(ids, places, types)
        lengths = batch.lengths.astype(np.int32)
        chunks = _Chunks.of(lengths, threads=self._threads)
        rows = len(ids) if pool is _Pool.STATES else len(lengths)
        result = np.empty((rows, self._weights.config.hidden), dtype=np.float32)
        job = _Batch(
            ids.ctypes.data, None if types is None else types.ctypes.data, places.ctypes.data, lengths.ctypes.data,
            chunks.texts.ctypes.data, chunks.tokens.ctypes.data, result.ctypes.data, len(chunks.texts) - 1, 0, pool,
        )  # fmt: skip
        self._work(job, chunks, longest=int(lengths.max()))
        del ids, types, places  # the job has only their addresses: they had to live until here
        return result

    def _work(self, job: _Batch, chunks: _Chunks, *, longest: int) -> None:
        """Have all chunks computed, by this thread and as many others as are of use."""

        def take_part(room: _Room) -> None:
            room.work(job, rows=chunks.largest, longest=longest)

        mine, *theirs = self._rooms[: min(self._threads, job.chunks)]
        helping: list[Future[None]] = []
        try:
            if self._helpers is not None:
                helping += [self._helpers.submit(take_part, room) for room in theirs]
            take_part(mine)
        except BaseException:
            job.next = job.chunks  # whoever begins now finds nothing left to do
            raise
        finally:
            # Not before all are done may the arrays that ``job`` points to go, whatever failed.
            wait(helping)
        for each in helping:
            each.result()


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Where a batch is cut, between inputs: int32 positions (chunks + 1) of inputs and of tokens."""

    texts: NDArray[np.int32]
    tokens: NDArray[np.int32]

    @property
    def largest(self) -> int:
        """Tokens in the largest chunk."""
        return int(np.diff(self.tokens).max())

    @classmethod
    def of(cls, lengths: NDArray[np.int32], *, threads: int) -> _Chunks:
        """Chunks of similar size, at most _CHUNK_TOKENS unless one input is longer, as many for each thread."""
        ends = np.cumsum(lengths)
        wanted = -(-int(ends[-1]) // _CHUNK_TOKENS)
        size = min(_CHUNK_TOKENS, -(-int(ends[-1]) // (-(-wanted // threads) * threads)))
        texts, tokens = [0], [0]
        while texts[-1] < len(lengths):
            fitting = int(np.searchsorted(ends, tokens[-1] + size, side="right"))
            texts.append(max(texts[-1] + 1, fitting))
            tokens.append(int(ends[texts[-1] - 1]))
        return cls(np.array(texts, dtype=np.int32), np.array(tokens, dtype=np.int32))


class _Library:
    """The compiled source. Calls release the interpreter's lock."""

    def __init__(self, file: Path) -> None:
        loaded = ctypes.CDLL(str(file))
        self.pack = loaded.bert_pack
        self.pack.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p]
        self.pack.restype = None
        self.room = loaded.bert_room
        self.room.argtypes = [ctypes.POINTER(_Model), ctypes.c_int32, ctypes.c_int32]
        self.room.restype = ctypes.c_int64
        self.work = loaded.bert_work
        self.work.argtypes = [
            ctypes.POINTER(_Model), ctypes.POINTER(_Batch), ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p,
        ]  # fmt: skip
        self.work.restype = None
        if loaded.bert_allow_amx():
            raise OSError("the kernel does not let this process use AMX")


def _started(threads: int) -> ThreadPoolExecutor:
    """Threads that run already: one that could not be started later would leave its part of a batch in the queue."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="amx")
    together = threading.Barrier(threads + 1)
    try:
        for _ in range(threads):
            pool.submit(together.wait)
        together.wait(_START_SECONDS)
    except BaseException:
        together.abort()
        pool.shutdown(cancel_futures=True)
        raise
    return pool


class _Room:
    """One thread's memory: as much as the largest chunk so far needed."""

    def __init__(self, library: _Library, weights_of_model: _Weights) -> None:
        self._library, self._weights = library, weights_of_model
        self._rows = self._longest = 0
        self._memory = _aligned(0, np.uint8)

    def work(self, job: _Batch, *, rows: int, longest: int) -> None:
        """Compute chunks of ``job`` until none is left."""
        model = self._weights.model
        if rows > self._rows or longest > self._longest:
            rows, longest = max(rows, self._rows, _CHUNK_TOKENS), max(longest, self._longest)
            memory = _aligned(self._library.room(model, rows, longest), np.uint8)
            memory[:] = 0
            # Together, and only now: sizes without their memory would have the library write beyond it.
            self._rows, self._longest, self._memory = rows, longest, memory
        self._library.work(model, job, self._rows, self._longest, self._memory.ctypes.data)


class _Weights:
    """The model's tensors as the library reads them, and the struct that points to them.

    They are found by their published names, with or without the ``bert.`` that a head puts before them.
    """

    def __init__(self, model: ResolvedModel, config: BertConfig, library: _Library, *, planes: int) -> None:
        from safetensors.numpy import load_file

        self.config = config
        self._planes = planes
        self._library = library
        self._found: dict[str, NDArray[Any]] = {}
        for file in weights.weight_files(model.path, name=model.name):
            self._found.update(load_file(file))
        self._prefix = "bert." if "bert.embeddings.word_embeddings.weight" in self._found else ""
        # One array for all products in the order of their use: the library fetches the next one's weights ahead.
        hidden = config.hidden
        numbers = config.layers * (4 * hidden * hidden + 2 * hidden * config.inner)
        self._products = _aligned(planes * numbers, np.uint16)
        self._used = 0
        self._kept: list[NDArray[Any]] = []
        tables = [f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")]
        self._rows = [len(self._tensor(name)) for name in tables]
        layers = (_Layer * config.layers)(*(self._layer(f"encoder.layer.{index}") for index in range(config.layers)))
        self.model = _Model(
            config.layers, hidden, config.heads, config.inner, planes, config.epsilon,
            *(self._plain(name, shape=(rows, hidden)) for name, rows in zip(tables, self._rows, strict=True)),
            self._plain("embeddings.LayerNorm.weight", shape=(hidden,)),
            self._plain("embeddings.LayerNorm.bias", shape=(hidden,)),
            ctypes.addressof(layers),
        )  # fmt: skip
        self._layers = layers  # the struct holds its address alone

    def forget_files(self) -> None:
        """Free what was read: the library has its own copies."""
        self._found.clear()

    def require_known(self, ids: Int64Array, places: Int64Array, types: Int64Array | None) -> None:
        """Raise ValueError where an index is outside its table: the library would read beyond it."""
        names = ("token id", "position", "type id")
        for name, rows, index in zip(names, self._rows, (ids, places, types), strict=True):
            if index is not None and not 0 <= int(index.min()) <= int(index.max()) < rows:
                raise ValueError(f"a {name} is outside the model's {rows}")

    def outside(self, name: str) -> FloatArray:
        """A float32 tensor of the head."""
        return self._tensor(name, prefix="")

    def inside(self, name: str) -> FloatArray:
        """A float32 tensor of the encoder."""
        return self._tensor(name)

    def _tensor(self, *names: str, prefix: str | None = None) -> FloatArray:
        lead = self._prefix if prefix is None else prefix
        missing = [name for name in names if lead + name not in self._found]
        if missing:
            raise ValueError(f"the weights lack {lead}{missing[0]}")
        return np.concatenate([self._found[lead + name] for name in names]).astype(np.float32)

    def _shaped(self, *names: str, shape: tuple[int, ...]) -> FloatArray:
        """A tensor that has the sizes that the config says: the library computes with those."""
        tensor = self._tensor(*names)
        if tensor.shape != shape:
            raise ValueError(f"{names[0]} is {tensor.shape}, where the config says {shape}")
        return tensor

    def _plain(self, *names: str, shape: tuple[int, ...]) -> int:
        """The address of float32 numbers."""
        tensor = self._shaped(*names, shape=shape)
        kept = _aligned(tensor.size, np.float32)
        kept[:] = tensor.ravel()
        self._kept.append(kept)
        return int(kept.ctypes.data)

    def _product(self, *names: str, outputs: int, inputs: int) -> int:
        """The address of one product's weights, whose outputs follow each other."""
        tensor = self._shaped(*(f"{name}.weight" for name in names), shape=(outputs, inputs))
        packed = self._products[self._used : self._used + self._planes * tensor.size]
        self._used += packed.size
        self._library.pack(tensor.ctypes.data, outputs, inputs, self._planes, packed.ctypes.data)
        return int(packed.ctypes.data)

    def _layer(self, name: str) -> _Layer:
        projections = [f"{name}.attention.self.{each}" for each in ("query", "key", "value")]
        out, up, down = f"{name}.attention.output", f"{name}.intermediate", f"{name}.output"
        hidden, inner = self.config.hidden, self.config.inner
        return _Layer(
            self._plain(*(f"{each}.bias" for each in projections), shape=(3 * hidden,)),
            self._plain(f"{out}.dense.bias", shape=(hidden,)),
            self._plain(f"{up}.dense.bias", shape=(inner,)),
            self._plain(f"{down}.dense.bias", shape=(hidden,)),
            self._plain(f"{out}.LayerNorm.weight", shape=(hidden,)),
            self._plain(f"{out}.LayerNorm.bias", shape=(hidden,)),
            self._plain(f"{down}.LayerNorm.weight", shape=(hidden,)),
            self._plain(f"{down}.LayerNorm.bias", shape=(hidden,)),
            self._product(*projections, outputs=3 * hidden, inputs=hidden),
            self._product(f"{out}.dense", outputs=hidden, inputs=hidden),
            self._product(f"{up}.dense", outputs=inner, inputs=hidden),
            self._product(f"{down}.dense", outputs=hidden, inputs=inner),
        )


class _Classifier:
    """A classification head on each input's first state."""

    def __init__(self, found: _Weights) -> None:
        self._pooler = found.inside("pooler.dense.weight"), found.inside("pooler.dense.bias")
        self._outputs = found.outside("classifier.weight"), found.outside("classifier.bias")

    def __call__(self, first: FloatArray) -> FloatArray:
        weight, bias = self._pooler
        out_weight, out_bias = self._outputs
        logits: FloatArray = np.tanh(first @ weight.T + bias) @ out_weight.T + out_bias
        return logits


def _aligned(count: int, dtype: type[Any]) -> NDArray[Any]:
    """An empty array that begins at a multiple of 64 bytes: a tile's row is one line of the cache."""
    size = np.dtype(dtype).itemsize
    room = np.empty(count + _ALIGNMENT // size, dtype=dtype)
    start = -room.ctypes.data % _ALIGNMENT // size
    return room[start : start + count]
