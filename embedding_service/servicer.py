"""embedding.v1 to the embedder and back: translation only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import grpc.aio
import numpy as np

from embedding_service.embedder import Embedder, EmbeddingRequest, Embeddings
from inference.life import ModelLife
from inference.prompts import InputType
from inference.tokenizing import Truncation
from mesh.context import CallContext
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest
from mesh.pb.embedding.v1 import embedding_pb2 as pb
from mesh.pb.embedding.v1 import embedding_pb2_grpc
from mesh.serving import call_context, deadline_of
from mesh.serving.calls import ServicerContext
from mesh.version import VERSION

SERVICE = pb.DESCRIPTOR.services_by_name["EmbeddingService"].full_name

_INLINE_FLOATS = 65_536
"""More readable numbers than this are put into their message off the event loop: a million take a tenth of a second,
and health has to answer meanwhile. Vectors as bytes are one copy."""

_TRUNCATION = {
    pb.TRUNCATION_UNSPECIFIED: Truncation.END,
    pb.TRUNCATION_END: Truncation.END,
    pb.TRUNCATION_START: Truncation.START,
    pb.TRUNCATION_REFUSE: Truncation.REFUSE,
}
_INPUT_TYPE = {
    pb.INPUT_TYPE_UNSPECIFIED: InputType.UNSPECIFIED,
    pb.INPUT_TYPE_QUERY: InputType.QUERY,
    pb.INPUT_TYPE_DOCUMENT: InputType.DOCUMENT,
    pb.INPUT_TYPE_CLASSIFICATION: InputType.CLASSIFICATION,
    pb.INPUT_TYPE_CLUSTERING: InputType.CLUSTERING,
    pb.INPUT_TYPE_SIMILARITY: InputType.SIMILARITY,
}


class EmbeddingServicer(embedding_pb2_grpc.EmbeddingServiceServicer):
    """EmbeddingService. MeshErrors raised here are translated by the worker's interceptor."""

    def __init__(self, life: ModelLife[Embedder], *, max_request_bytes: int, max_stream_requests: int) -> None:
        self._life = life
        self._max_request_bytes = max_request_bytes
        self._max_stream_requests = max_stream_requests

    def register(self, server: grpc.aio.Server) -> None:
        """Serve this on ``server``."""
        embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(self, server)

    async def Embed(self, request: pb.EmbedRequest, context: ServicerContext) -> pb.EmbedResponse:
        """See embedding.proto."""
        return await self._answer(request, deadline_of(context), call_context(context))

    async def EmbedStream(
        self, request_iterator: AsyncIterator[pb.EmbedStreamRequest], context: ServicerContext
    ) -> AsyncIterator[pb.EmbedStreamResponse]:
        """See embedding.proto. Requests are computed side by side and answered in their order."""
        deadline, call = deadline_of(context), call_context(context)
        # Bounded, so that a client that sends faster than it reads is slowed by gRPC's flow control.
        room = asyncio.Semaphore(self._max_stream_requests)
        answers: asyncio.Queue[asyncio.Task[pb.EmbedResponse] | None] = asyncio.Queue()
        under_way: set[asyncio.Task[pb.EmbedResponse]] = set()

        async def read() -> None:
            async for frame in request_iterator:
                await room.acquire()
                answer = asyncio.create_task(self._answer(frame.request, deadline, call))
                under_way.add(answer)
                answers.put_nowait(answer)

        # Not a task group: it would cancel this task at its ``yield``, in gRPC's hands, when a later request fails.
        reader = asyncio.create_task(read())
        reader.add_done_callback(lambda _: answers.put_nowait(None))
        index = 0
        try:
            while (answer := await answers.get()) is not None:
                yield pb.EmbedStreamResponse(response=await answer, index=index)
                index += 1
                under_way.discard(answer)
                room.release()
            await reader
        finally:
            for task in (reader, *under_way):
                task.cancel()
            await asyncio.gather(reader, *under_way, return_exceptions=True)

    async def Info(self, request: pb.InfoRequest, context: ServicerContext) -> pb.InfoResponse:  # noqa: ARG002 - gRPC's
        """See embedding.proto."""
        embedder = self._life.served
        limits = embedder.runner.limits
        model, verdict, traits = embedder.loaded.model, embedder.loaded.verdict, embedder.loaded.engine.traits
        return pb.InfoResponse(
            models=[
                pb.Model(
                    name=model.name,
                    aliases=embedder.runner.aliases,
                    revision=model.revision,
                    source=model.source.value,
                    dimensions=model.card.dimensions,
                    max_input_tokens=model.card.max_input_tokens,
                    engine=verdict.engine,
                    precision=traits.precision,
                    device=traits.device,
                    fidelity_min_cosine=verdict.min_cosine,
                    fidelity_mean_cosine=verdict.mean_cosine,
                    check_texts_per_second=verdict.texts_per_second,
                    pooling=model.card.pooling.value,
                    matryoshka_dimensions=embedder.matryoshka,
                    fingerprint=embedder.fingerprint,
                    profile=pb.Profile(
                        source=model.card.profile,
                        prompts=model.card.prompts,
                        default_prompt=model.card.default_prompt,
                        normalize=model.card.normalize,
                    ),
                )
            ],
            limits=pb.Limits(
                max_inputs_per_request=limits.items_per_request,
                max_tokens_per_request=limits.tokens_per_request,
                max_request_bytes=self._max_request_bytes,
                max_queued_tokens=limits.queued_tokens,
            ),
            version=VERSION,
        )

    async def _answer(self, request: pb.EmbedRequest, deadline: Deadline, call: CallContext) -> pb.EmbedResponse:
        embedder = self._life.served
        # Counted before they are copied: a message holds millions of tiny inputs.
        embedder.runner.require_items(len(request.texts) + len(request.token_inputs), param="input")
        found = await embedder.embed(_from_wire(request), deadline=deadline, priority=call.priority)
        readable = request.format == pb.VECTOR_FORMAT_FLOATS
        to_wire = partial(_to_wire, found, embedder, readable=readable)
        if readable and found.vectors.size > _INLINE_FLOATS:
            return await asyncio.to_thread(to_wire)
        return to_wire()


def _from_wire(request: pb.EmbedRequest) -> EmbeddingRequest:
    truncation, input_type = _TRUNCATION.get(request.truncation), _INPUT_TYPE.get(request.input_type)
    if truncation is None:
        raise InvalidRequest(f"truncation has no value {request.truncation}.", param="truncation")
    if input_type is None:
        raise InvalidRequest(
            f"input_type has no value {request.input_type}. There are: {', '.join(pb.InputType.keys())}.",
            param="input_type",
        )
    return EmbeddingRequest(
        texts=tuple(request.texts),
        # Not copied here: of 16 million ids the model may read 512, and copying takes a while.
        token_inputs=tuple(each.ids for each in request.token_inputs),
        model=request.model,
        dimensions=request.dimensions if request.HasField("dimensions") else None,
        normalize=request.normalize if request.HasField("normalize") else None,
        truncation=truncation,
        input_type=input_type,
        prompt_name=request.prompt_name,
    )


def _to_wire(found: Embeddings, embedder: Embedder, *, readable: bool) -> pb.EmbedResponse:
    rows, dim = found.vectors.shape
    response = pb.EmbedResponse(
        model=embedder.loaded.model.name,
        rows=rows,
        dim=dim,
        usage=pb.Usage(tokens=found.tokens, characters=found.characters),
        timings=pb.Timings(
            total_us=_microseconds(found.total_seconds),
            tokenization_us=_microseconds(found.tokenization_seconds),
            queue_us=_microseconds(found.queue_seconds),
            inference_us=_microseconds(found.inference_seconds),
            batch_size=found.batch_size,
        ),
        truncated_inputs=found.truncated,
        fingerprint=embedder.fingerprint,
        input_tokens=found.input_tokens,
    )
    if readable:
        response.readable_vectors.extend(pb.Vector(values=row.tolist()) for row in found.vectors)
    else:
        response.vectors = np.ascontiguousarray(found.vectors, dtype="<f4").tobytes()
    return response


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
