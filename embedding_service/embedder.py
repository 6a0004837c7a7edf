"""Texts to vectors: checks a request, tokenizes it, sends it through the shared batches, shapes the vectors."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from inference.admission import Batched
from inference.engines import FloatArray
from inference.loading import LoadedModel
from inference.padding import pad
from inference.pooling import normalized
from inference.prompts import InputType, prefix
from inference.runner import ModelRunner, RunnerLimits, TextSize, short_name
from inference.tokenizing import Tokenized, TokenizedInput, Truncation
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, ModelUnusable, WrongState
from mesh.version import VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """One caller's inputs: texts, or ids of the model's own vocabulary.

    Attributes:
        dimensions: cut to this many and normalise again; None keeps all.
        normalize: scale each vector to length 1; None does as the model's profile says.
        input_type: what the inputs are for.
        prompt_name: one of the model's own prompts, instead of a type.
    """

    texts: Sequence[str] = ()
    token_inputs: Sequence[Sequence[int]] = ()
    model: str = ""
    dimensions: int | None = None
    normalize: bool | None = None
    truncation: Truncation = Truncation.END
    input_type: InputType = InputType.UNSPECIFIED
    prompt_name: str = ""


_FILES_THAT_DECIDE = ("config.json", "tokenizer.json")


def fingerprint_of(loaded: LoadedModel, cuts: Sequence[int]) -> str:
    """Equal only where equal requests get equal vectors: for replicas, restarts, and caches that outlive both.

    The mesh's version is part of it, since its code between text and vector may change with it; so are the allowed
    ``cuts``, since a vector that was kept must not answer what is refused now.
    """
    model, traits = loaded.model, loaded.engine.traits
    facts = {
        "mesh": VERSION,
        "model": model.name,
        "revision": model.revision,
        # A local model's revision is of its weights alone.
        **{name: hashlib.sha256((model.path / name).read_bytes()).hexdigest() for name in _FILES_THAT_DECIDE},
        "card": asdict(model.card),
        "cuts": sorted(cuts),
        "engine": loaded.verdict.engine,
        "precision": traits.precision,
        "export": traits.export,
        # Of two devices of one kind either will do.
        "device": traits.device.partition(":")[0],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


_CANARY = EmbeddingRequest(texts=("canary",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """The answer.

    Attributes:
        vectors: float32 (inputs, dimensions), in the order of the inputs.
        tokens: what the model read, special tokens included.
        input_tokens: the same for each input.
        characters: of the inputs before truncation.
        truncated: positions of the inputs that were cut.
    """

    vectors: FloatArray
    tokens: int
    input_tokens: tuple[int, ...]
    characters: int
    truncated: tuple[int, ...]
    total_seconds: float
    tokenization_seconds: float
    queue_seconds: float
    inference_seconds: float
    batch_size: int


class Embedder:
    """Serves one loaded model. ``start`` on the event loop before the first ``embed``.

    Args:
        dimensions: which cuts are allowed beside the model's own statement.
    """

    def __init__(
        self, loaded: LoadedModel, limits: RunnerLimits, *, aliases: Sequence[str] = (), dimensions: Sequence[int] = ()
    ) -> None:
        self.loaded = loaded
        _require_room_after_prompts(loaded)
        self.matryoshka = tuple(sorted({*loaded.model.card.matryoshka_dimensions, *dimensions}, reverse=True))
        self.fingerprint = fingerprint_of(loaded, self.matryoshka)
        self.runner: ModelRunner[TokenizedInput, FloatArray] = ModelRunner(
            loaded, self._compute, limits, capability="embedding", aliases=(short_name(loaded.model.name), *aliases)
        )

    def start(self) -> None:
        """Start the engine's thread. Call on the event loop that will embed."""
        self.runner.start()

    async def prove(self, *, deadline: Deadline) -> None:
        """One real inference, before whatever waits for the engine."""
        await self._embed(_CANARY, deadline=deadline, priority=Priority.INTERACTIVE, canary=True)

    def progress(self) -> float:
        """Seconds for which admitted work has waited without progress; 0.0 when idle."""
        return self.runner.progress()

    def occupied(self) -> bool:
        """Whether the engine computes a batch now that is no canary."""
        return self.runner.occupied()

    def failures(self) -> int:
        """How many batches the engine failed since it last computed one; 0 when all is well."""
        return self.runner.failures()

    async def stop(self) -> None:
        """Finish what was admitted and end the engine's thread."""
        await self.runner.stop()

    async def embed(
        self, request: EmbeddingRequest, *, deadline: Deadline, priority: Priority = Priority.INTERACTIVE
    ) -> Embeddings:
        """The vectors of ``request``'s inputs, in their order.

        Raises:
            InvalidRequest: no input, an empty text, an unknown token id or prompt, or too long with Truncation.REFUSE.
            WrongState: ``dimensions`` that this model cannot give.
            NotFound: another model is served.
            PayloadTooLarge: more inputs or tokens than the limits allow.
            Overloaded, DeadlineExceeded, GpuOutOfMemory, Unavailable: see Batcher.submit.
        """
        return await self._embed(request, deadline=deadline, priority=priority)

    async def _embed(
        self, request: EmbeddingRequest, *, deadline: Deadline, priority: Priority, canary: bool = False
    ) -> Embeddings:
        started = time.perf_counter()
        self._check(request)
        tokenized = await self._tokenize(request, deadline=deadline, priority=priority, canary=canary)
        self.runner.require_tokens(tokenized.tokens, param="input")
        tokenization_seconds = time.perf_counter() - started
        batched = await self.runner.submit(tokenized.inputs, deadline=deadline, priority=priority, canary=canary)
        vectors = self._shaped(batched, request)
        return Embeddings(
            vectors=vectors,
            tokens=tokenized.tokens,
            input_tokens=tuple(each.tokens for each in tokenized.inputs),
            # Of what the caller sent: the model's prefixes are not the caller's.
            characters=sum(map(len, request.texts)),
            truncated=tokenized.truncated,
            total_seconds=time.perf_counter() - started,
            tokenization_seconds=tokenization_seconds,
            queue_seconds=batched.timings.queue_seconds,
            inference_seconds=batched.timings.inference_seconds,
            batch_size=batched.timings.largest_batch,
        )

    def _check(self, request: EmbeddingRequest) -> None:
        self.runner.require_served(request.model)
        if bool(request.texts) == bool(request.token_inputs):
            raise InvalidRequest("Send at least one input, as text or as token ids, not both.", param="input")
        inputs: Sequence[str] | Sequence[Sequence[int]] = request.texts or request.token_inputs
        self.runner.require_items(len(inputs), param="input")
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

    async def _tokenize(
        self, request: EmbeddingRequest, *, deadline: Deadline, priority: Priority, canary: bool
    ) -> Tokenized:
        tokenizer = self.loaded.tokenizer
        prompt = prefix(self.loaded.model.card, request.input_type, request.prompt_name)
        if request.token_inputs:
            if prompt and (request.prompt_name or request.input_type is not InputType.UNSPECIFIED):
                raise InvalidRequest(
                    "The model reads a prompt before inputs of this type, and none can be put before token ids. "
                    "Send texts, or state no type.",
                    param="input_type",
                )
            specials = sum(tokenizer.specials)
            tokens = sum(min(len(ids) + specials, tokenizer.max_tokens) for ids in request.token_inputs)
            self.runner.require_tokens(tokens, param="input")
            return await self.runner.tokenize(
                TextSize(len(request.token_inputs), tokens, tokens),
                lambda: tokenizer.token_inputs(request.token_inputs, request.truncation),
                deadline=deadline,
                priority=priority,
                canary=canary,
            )
        texts = [prompt + text for text in request.texts] if prompt else request.texts
        return await self.runner.tokenize(
            TextSize(len(texts), sum(map(len, texts))),
            lambda: tokenizer.singles(texts, request.truncation, prompt=prompt),
            deadline=deadline,
            priority=priority,
            canary=canary,
        )

    def _compute(self, inputs: Sequence[TokenizedInput]) -> Sequence[FloatArray]:
        """On the engine's thread: one vector per input, not normalised."""
        return list(self.loaded.engine.run(pad(inputs, pad_token_id=self.loaded.model.card.pad_token_id)))

    def _shaped(self, batched: Batched[FloatArray], request: EmbeddingRequest) -> FloatArray:
        vectors = np.stack(batched.results)
        cut = request.dimensions is not None and request.dimensions < vectors.shape[1]
        if cut:
            vectors = vectors[:, : request.dimensions]
        wanted = self.loaded.model.card.normalize if request.normalize is None else request.normalize
        # A cut vector is always scaled: its length means nothing.
        return normalized(vectors) if wanted or cut else vectors


def _require_room_after_prompts(loaded: LoadedModel) -> None:
    """Raise ModelUnusable where a prompt fills what the model reads: every vector would be the prompt's."""
    for name, prompt in loaded.model.card.prompts.items():
        if loaded.tokenizer.count(prompt) + sum(loaded.tokenizer.specials) >= loaded.tokenizer.max_tokens:
            raise ModelUnusable(
                f"The prompt {name!r} of {loaded.model.name} fills the {loaded.tokenizer.max_tokens} tokens that are "
                "read. Shorten it in the profile, or raise the longest input.",
                reason="PROFILE_INVALID",
            )
