"""The embedding worker's client: texts in, vectors out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from mesh.clients.base import AsyncClient, SyncClient, whole_characters
from mesh.deadline import Deadline
from mesh.outgoing import taken
from mesh.pb.embedding.v1 import embedding_pb2 as pb
from mesh.pb.embedding.v1.embedding_pb2_grpc import EmbeddingServiceStub
from mesh.transport import as_async

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FLOAT_BYTES = 4


class Truncation(Enum):
    """What to do with an input longer than the model reads."""

    END = "end"
    START = "start"
    REFUSE = "refuse"


class InputType(Enum):
    """What an input is for; models with instruction prefixes encode queries and documents differently."""

    UNSPECIFIED = "unspecified"
    QUERY = "query"
    DOCUMENT = "document"
    CLASSIFICATION = "classification"
    CLUSTERING = "clustering"
    SIMILARITY = "similarity"


@dataclass(frozen=True, slots=True)
class TokenInputs:
    """Inputs as ids of the served model's own vocabulary, without special tokens."""

    ids: Sequence[Sequence[int]]


EmbedInputs = Sequence[str] | TokenInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """How to embed.

    Attributes:
        model: a served model's name or alias; empty means the only one.
        dimensions: cut each vector to this length and normalise it again; None keeps all.
        normalize: scale to length 1; None does as the model's profile says, which nearly always is yes.
        truncation: what to do with over-long inputs.
        input_type: what the inputs are for.
        prompt_name: one of the model's own prompts, instead of a type.
    """

    model: str = ""
    dimensions: int | None = None
    normalize: bool | None = None
    truncation: Truncation = Truncation.END
    input_type: InputType = InputType.UNSPECIFIED
    prompt_name: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request consumed: tokens that the model read, special ones included, and characters before truncation.

    ``cache_hits`` counts the inputs whose vectors were kept from earlier requests; None where nothing keeps any. Their
    tokens are counted like the others'.
    """

    tokens: int
    characters: int
    cache_hits: int | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went in the worker, in microseconds; ``batch_size`` counts other callers' texts too."""

    total_us: int
    tokenization_us: int
    queue_us: int
    inference_us: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors in the order of the inputs.

    Attributes:
        model: the served model's canonical name.
        rows: number of vectors.
        dim: length of each.
        vectors: rows × dim little-endian float32, row-major.
        usage: what the request consumed.
        timings: where the time went.
        truncated_inputs: positions of the inputs that were cut to the model's length.
        fingerprint: of the model that computed them, see EmbeddingModel; empty from a worker that states none.
        input_tokens: tokens of each input; empty from a worker that counts them together only.
    """

    model: str
    rows: int
    dim: int
    vectors: bytes
    usage: Usage
    timings: Timings
    truncated_inputs: tuple[int, ...] = ()
    fingerprint: str = ""
    input_tokens: tuple[int, ...] = ()

    @classmethod
    def from_wire(cls, reply: pb.EmbedResponse) -> Embeddings:
        """From the proto message."""
        return cls(
            model=reply.model,
            rows=reply.rows,
            dim=reply.dim,
            vectors=reply.vectors,
            usage=Usage(reply.usage.tokens, reply.usage.characters),
            timings=timings_from_wire(reply.timings),
            truncated_inputs=tuple(reply.truncated_inputs),
            fingerprint=reply.fingerprint,
            input_tokens=tuple(reply.input_tokens),
        )

    def row_bytes(self, row: int) -> memoryview:
        """One vector's bytes, without a copy."""
        size = self.dim * FLOAT_BYTES
        return memoryview(self.vectors)[row * size : (row + 1) * size]

    def array(self) -> NDArray[np.float32]:
        """The vectors as a read-only float32 array of shape (rows, dim). Needs the extra ``clients`` (numpy)."""
        try:
            import numpy as np
        except ImportError as error:
            raise ImportError("Arrays need numpy: pip install 'torch-isolation-mesh[clients]'") from error
        return np.frombuffer(self.vectors, dtype="<f4").reshape(self.rows, self.dim)


@dataclass(frozen=True, slots=True)
class EmbeddingProfile:
    """How a model is used: its prompts by name, the name of the one for inputs of no type, and where that came from."""

    source: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    normalize: bool = True


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """A served model, with the engine that was chosen for it and how faithful that is to the float32 reference.

    Models with equal ``fingerprint`` give equal vectors for equal requests, up to rounding; empty where none is stated.
    """

    name: str
    aliases: tuple[str, ...]
    revision: str
    source: str
    dimensions: int
    max_input_tokens: int
    engine: str
    precision: str
    device: str
    fidelity_min_cosine: float
    fidelity_mean_cosine: float
    check_texts_per_second: float
    pooling: str
    matryoshka_dimensions: tuple[int, ...]
    fingerprint: str = ""
    profile: EmbeddingProfile = field(default_factory=EmbeddingProfile)


@dataclass(frozen=True, slots=True)
class EmbeddingLimits:
    """What one request may hold, and what may wait."""

    max_inputs_per_request: int
    max_tokens_per_request: int
    max_request_bytes: int
    max_queued_tokens: int


@dataclass(frozen=True, slots=True)
class EmbeddingInfo:
    """What the worker serves."""

    models: tuple[EmbeddingModel, ...]
    limits: EmbeddingLimits
    version: str


class AsyncEmbeddingServiceClient(AsyncClient):
    """Turns texts into vectors, on an event loop.

    >>> async with AsyncEmbeddingServiceClient("127.0.0.1:50051") as client:  # doctest: +SKIP
    ...     vectors = await client.generate_embeddings(["a text", "another"])
    """

    hop_name = "embedding"
    service = "embedding.v1.EmbeddingService"
    stub_class = EmbeddingServiceStub
    idempotent_methods = ("Embed", "Info")

    async def generate_embeddings(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of ``texts``: float32, shape (n, dim), each of length 1. Raises MeshError."""
        return (await self.embed(texts)).array()

    async def embed(
        self, inputs: EmbedInputs, options: EmbedOptions | None = None, *, deadline: Deadline | None = None
    ) -> Embeddings:
        """The vectors of ``inputs`` with usage and timings. Raises MeshError."""
        with whole_characters():
            request = _to_wire(inputs, options)
        reply = await self.hop.call(self._stub.Embed, request, deadline=deadline)
        return Embeddings.from_wire(reply)

    async def embed_stream(
        self,
        batches: AsyncIterable[EmbedInputs],
        options: EmbedOptions | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> AsyncGenerator[Embeddings, None]:
        """One result per batch, in the order of the batches, while later batches are still being sent.

        Every batch obeys the limits of ``embed``. Raises MeshError; results already given stay valid.
        """

        async def frames() -> AsyncGenerator[pb.EmbedStreamRequest, None]:
            async with taken(batches) as opened:
                async for inputs in opened:
                    with whole_characters():
                        request = _to_wire(inputs, options)
                    yield pb.EmbedStreamRequest(request=request)

        async with aclosing(self.hop.stream(self._stub.EmbedStream, frames(), deadline=deadline)) as replies:
            async for reply in replies:
                yield Embeddings.from_wire(reply.response)

    async def info(self, *, deadline: Deadline | None = None) -> EmbeddingInfo:
        """What the worker serves. Raises MeshError."""
        reply = await self.hop.call(self._stub.Info, pb.InfoRequest(), deadline=deadline, evidence=False)
        return EmbeddingInfo(
            models=tuple(_model_from_wire(model) for model in reply.models),
            limits=EmbeddingLimits(
                reply.limits.max_inputs_per_request,
                reply.limits.max_tokens_per_request,
                reply.limits.max_request_bytes,
                reply.limits.max_queued_tokens,
            ),
            version=reply.version,
        )


class EmbeddingServiceClient(SyncClient[AsyncEmbeddingServiceClient]):
    """Turns texts into vectors, blocking.

    >>> client = EmbeddingServiceClient("127.0.0.1:50051")  # doctest: +SKIP
    >>> client.generate_embeddings(["a text", "another"]).shape  # doctest: +SKIP
    (2, 384)
    """

    async_class = AsyncEmbeddingServiceClient

    def generate_embeddings(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of ``texts``: float32, shape (n, dim), each of length 1. Raises MeshError."""
        return self._run(self._client.generate_embeddings(texts))

    def embed(
        self, inputs: EmbedInputs, options: EmbedOptions | None = None, *, deadline: Deadline | None = None
    ) -> Embeddings:
        """The vectors of ``inputs`` with usage and timings. Raises MeshError."""
        return self._run(self._client.embed(inputs, options, deadline=deadline))

    def embed_stream(
        self, batches: Iterable[EmbedInputs], options: EmbedOptions | None = None, *, deadline: Deadline | None = None
    ) -> Iterator[Embeddings]:
        """One result per batch, in the order of the batches. Raises MeshError."""
        return self._iterate(self._client.embed_stream(as_async(batches), options, deadline=deadline))

    def info(self, *, deadline: Deadline | None = None) -> EmbeddingInfo:
        """What the worker serves. Raises MeshError."""
        return self._run(self._client.info(deadline=deadline))


def timings_from_wire(timings: Any) -> Timings:
    """Timings of an embedding or reranking reply; both services state the same five figures."""
    return Timings(
        timings.total_us, timings.tokenization_us, timings.queue_us, timings.inference_us, timings.batch_size
    )


def _to_wire(inputs: EmbedInputs, options: EmbedOptions | None) -> pb.EmbedRequest:
    options = options or EmbedOptions()
    request = pb.EmbedRequest(
        model=options.model,
        dimensions=options.dimensions,
        normalize=options.normalize,
        truncation=f"TRUNCATION_{options.truncation.name}",
        input_type=f"INPUT_TYPE_{options.input_type.name}",
        prompt_name=options.prompt_name,
    )
    if isinstance(inputs, TokenInputs):
        request.token_inputs.extend(pb.TokenIds(ids=ids) for ids in inputs.ids)
    else:
        request.texts.extend(inputs)
    return request


def _model_from_wire(model: pb.Model) -> EmbeddingModel:
    return EmbeddingModel(
        name=model.name,
        aliases=tuple(model.aliases),
        revision=model.revision,
        source=model.source,
        dimensions=model.dimensions,
        max_input_tokens=model.max_input_tokens,
        engine=model.engine,
        precision=model.precision,
        device=model.device,
        fidelity_min_cosine=model.fidelity_min_cosine,
        fidelity_mean_cosine=model.fidelity_mean_cosine,
        check_texts_per_second=model.check_texts_per_second,
        pooling=model.pooling,
        matryoshka_dimensions=tuple(model.matryoshka_dimensions),
        fingerprint=model.fingerprint,
        profile=EmbeddingProfile(
            source=model.profile.source,
            prompts=dict(model.profile.prompts),
            default_prompt=model.profile.default_prompt,
            # A worker of an older version states no profile, and scales.
            normalize=model.profile.normalize or not model.HasField("profile"),
        ),
    )
