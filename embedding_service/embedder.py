"""Texts to vectors: checks a request, tokenizes it, sends it through the shared batches, shapes the vectors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum

import numpy as np

from inference.batcher import Batched, Batcher, BatchLimits
from inference.engines import FloatArray
from inference.loading import LoadedModel
from inference.padding import pad
from inference.pooling import normalized
from inference.tokenizing import Tokenized, TokenizedInput, Truncation
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, NotFound, PayloadTooLarge, WrongState

_INLINE_CHARACTERS = 4096
"""Tokenizing this much takes less time than handing it to another thread and back."""


class InputType(Enum):
    """What an input is for; a model with prompts encodes the two differently."""

    UNSPECIFIED = ""
    QUERY = "query"
    DOCUMENT = "document"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """One caller's inputs: texts, or ids of the model's own vocabulary.

    Attributes:
        dimensions: cut to this many and normalise again; None keeps all.
        normalize: scale each vector to length 1.
    """

    texts: Sequence[str] = ()
    token_inputs: Sequence[Sequence[int]] = ()
    model: str = ""
    dimensions: int | None = None
    normalize: bool = True
    truncation: Truncation = Truncation.END
    input_type: InputType = InputType.UNSPECIFIED


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """The answer.

    Attributes:
        vectors: float32 (inputs, dimensions), in the order of the inputs.
        tokens: what the model read, special tokens included.
        characters: of the inputs before truncation.
        truncated: positions of the inputs that were cut.
    """

    vectors: FloatArray
    tokens: int
    characters: int
    truncated: tuple[int, ...]
    total_seconds: float
    tokenization_seconds: float
    queue_seconds: float
    inference_seconds: float
    batch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderLimits:
    """Limits of one request, and of the queue.

    Attributes:
        batch_tokens: 0 means what the engine was fastest with.
        dimensions: which cuts are allowed beside the model's own statement.
    """

    inputs_per_request: int = 2048
    tokens_per_request: int = 300_000
    queued_tokens: int = 600_000
    batch_tokens: int = 0
    dimensions: tuple[int, ...] = ()


class Embedder:
    """Serves one loaded model. ``start`` on the event loop before the first ``embed``."""

    def __init__(self, loaded: LoadedModel, limits: EmbedderLimits, *, aliases: Sequence[str] = ()) -> None:
        self.loaded = loaded
        self.limits = limits
        self.aliases = tuple(dict.fromkeys((*_short_names(loaded.model.name), *aliases)))
        self.batch_tokens = limits.batch_tokens or loaded.verdict.batch_tokens
        self.matryoshka = tuple(sorted({*loaded.model.card.matryoshka_dimensions, *limits.dimensions}, reverse=True))
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenizing")
        self._batcher: Batcher[TokenizedInput, FloatArray] = Batcher(
            self._compute,
            BatchLimits(
                batch_tokens=self.batch_tokens,
                queued_tokens=limits.queued_tokens,
                initial_tokens_per_second=loaded.verdict.tokens_per_second,
            ),
            capability="embedding",
        )

    def start(self) -> None:
        """Start the engine's thread. Call on the event loop that will embed."""
        self._batcher.start()

    def progress(self) -> float:
        """Seconds for which admitted work has waited without progress; 0.0 when idle."""
        return self._batcher.progress()

    async def stop(self) -> None:
        """Finish what was admitted and free the engine."""
        await self._batcher.stop()
        self._tokenizing.shutdown(wait=False)

    async def embed(
        self, request: EmbeddingRequest, *, deadline: Deadline, priority: Priority = Priority.INTERACTIVE
    ) -> Embeddings:
        """The vectors of ``request``'s inputs, in their order.

        Raises:
            InvalidRequest: no input, an empty text, an unknown token id, or too long with Truncation.REFUSE.
            WrongState: ``dimensions`` that this model cannot give.
            NotFound: another model is served.
            PayloadTooLarge: more inputs or tokens than the limits allow.
            Overloaded, DeadlineExceeded, GpuOutOfMemory, Unavailable: see Batcher.submit.
        """
        started = time.perf_counter()
        self._check(request)
        tokenized = await self._tokenize(request)
        if tokenized.tokens > self.limits.tokens_per_request:
            raise PayloadTooLarge(
                f"The request has {tokenized.tokens} tokens and {self.limits.tokens_per_request} are allowed at once. "
                "Send it in parts.",
                reason="TOO_MANY_TOKENS",
                param="input",
            )
        tokenization_seconds = time.perf_counter() - started
        batched = await self._batcher.submit(tokenized.inputs, deadline=deadline, priority=priority)
        vectors = self._shaped(batched, request)
        return Embeddings(
            vectors=vectors,
            tokens=tokenized.tokens,
            characters=tokenized.characters,
            truncated=tokenized.truncated,
            total_seconds=time.perf_counter() - started,
            tokenization_seconds=tokenization_seconds,
            queue_seconds=batched.timings.queue_seconds,
            inference_seconds=batched.timings.inference_seconds,
            batch_size=batched.timings.largest_batch,
        )

    def _check(self, request: EmbeddingRequest) -> None:
        known = (self.loaded.model.name, *self.aliases)
        if request.model and request.model not in known:
            raise NotFound(
                f"The model {request.model[:200]!r} is not served here. Served: {', '.join(known)}.",
                reason="MODEL_NOT_SERVED",
                param="model",
            )
        if bool(request.texts) == bool(request.token_inputs):
            raise InvalidRequest("Send at least one input, as text or as token ids, not both.", param="input")
        inputs: Sequence[str] | Sequence[Sequence[int]] = request.texts or request.token_inputs
        if len(inputs) > self.limits.inputs_per_request:
            raise PayloadTooLarge(
                f"The request has {len(inputs)} inputs and {self.limits.inputs_per_request} are allowed at once. "
                "Send it in parts.",
                reason="TOO_MANY_INPUTS",
                param="input",
            )
        for position, each in enumerate(inputs):
            if not len(each):
                raise InvalidRequest(
                    f"input[{position}] is empty. Leave it out, or send some text.",
                    reason="EMPTY_INPUT",
                    param=f"input[{position}]",
                )
        self._check_dimensions(request.dimensions)

    def _check_dimensions(self, dimensions: int | None) -> None:
        native = self.loaded.model.card.dimensions
        if dimensions is None or dimensions == native:
            return
        if not 1 <= dimensions <= native:
            raise InvalidRequest(
                f"dimensions must be between 1 and {native}, the length of this model's vectors.",
                reason="DIMENSIONS_OUT_OF_RANGE",
                param="dimensions",
            )
        if dimensions not in self.matryoshka:
            allowed = ", ".join(map(str, (native, *self.matryoshka)))
            raise WrongState(
                f"{self.loaded.model.name} was not trained to be cut to {dimensions} dimensions. "
                f"Leave dimensions out, or ask for one of: {allowed}.",
                reason="DIMENSIONS_NOT_SUPPORTED",
                param="dimensions",
            )

    async def _tokenize(self, request: EmbeddingRequest) -> Tokenized:
        tokenizer = self.loaded.tokenizer
        if request.token_inputs:
            return tokenizer.token_inputs(request.token_inputs, request.truncation)
        prompt = self.loaded.model.card.prompts.get(request.input_type.value, "")
        texts = [prompt + text for text in request.texts] if prompt else request.texts
        if sum(map(len, texts)) <= _INLINE_CHARACTERS:
            return tokenizer.singles(texts, request.truncation)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenizing, tokenizer.singles, texts, request.truncation)

    def _compute(self, inputs: Sequence[TokenizedInput]) -> Sequence[FloatArray]:
        """On the engine's thread: one vector per input, not normalised."""
        return list(self.loaded.engine.run(pad(inputs, pad_token_id=self.loaded.model.card.pad_token_id)))

    def _shaped(self, batched: Batched[FloatArray], request: EmbeddingRequest) -> FloatArray:
        vectors = np.stack(batched.results)
        cut = request.dimensions is not None and request.dimensions < vectors.shape[1]
        if cut:
            vectors = vectors[:, : request.dimensions]
        # A cut vector is always scaled: its length means nothing.
        return normalized(vectors) if request.normalize or cut else vectors


def _short_names(name: str) -> tuple[str, ...]:
    """The name without its owner, as most clients write it."""
    short = name.rpartition("/")[2]
    return (short,) if short != name else ()
