"""An embedding servicer that does what a script says, over the real wire."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable

from mesh.context import current_call
from mesh.errors import MeshError
from mesh.pb.embedding.v1 import embedding_pb2 as pb
from mesh.pb.embedding.v1.embedding_pb2_grpc import EmbeddingServiceServicer, add_EmbeddingServiceServicer_to_server
from mesh.serving import Capability
from mesh.serving.calls import ServicerContext

SERVICE = "embedding.v1.EmbeddingService"
HANG = "hang"
"""A step that never answers."""

Step = MeshError | Exception | str | None


class ScriptedEmbedding(EmbeddingServiceServicer):
    """Answers each call by the next step: an error is raised, HANG hangs, None answers; after the last step it answers.

    An answered text becomes the vector (its length, its number of vowels), so that a test can tell whose is whose.
    """

    def __init__(self, script: Iterable[Step] = (), *, fingerprint: str = "scripted") -> None:
        self._steps = iter(script)
        self._fingerprint = fingerprint
        self.calls = 0
        self.cancelled = 0
        self.request_ids: list[str] = []
        self.traceparents: list[str] = []

    def capability(self) -> Capability:
        """As a worker's capability that is ready at once."""
        return Capability(
            service=SERVICE, register=lambda server: add_EmbeddingServiceServicer_to_server(self, server), start=_ready
        )

    async def Embed(self, request: pb.EmbedRequest, context: ServicerContext) -> pb.EmbedResponse:  # noqa: ARG002
        """The next step of the script."""
        await self._step()
        return _answer(request, self._fingerprint)

    async def EmbedStream(
        self,
        request_iterator: AsyncIterator[pb.EmbedStreamRequest],
        context: ServicerContext,  # noqa: ARG002
    ) -> AsyncIterator[pb.EmbedStreamResponse]:
        """One step of the script per frame."""
        index = 0
        async for frame in request_iterator:
            await self._step()
            yield pb.EmbedStreamResponse(response=_answer(frame.request, self._fingerprint), index=index)
            index += 1

    async def Info(self, request: pb.InfoRequest, context: ServicerContext) -> pb.InfoResponse:  # noqa: ARG002
        """A model named ``scripted``."""
        model = pb.Model(name="scripted", dimensions=2, fingerprint=self._fingerprint)
        return pb.InfoResponse(models=[model], version="test")

    async def _step(self) -> None:
        self.calls += 1
        call = current_call.get()
        self.request_ids.append(call.request_id if call else "")
        self.traceparents.append(call.traceparent if call else "")
        step = next(self._steps, None)
        if isinstance(step, Exception):
            raise step
        if step == HANG:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise


def vector_of(text: str) -> tuple[float, float]:
    """The vector that stands for a text."""
    return float(len(text)), float(sum(text.count(vowel) for vowel in "aeiou"))


def _answer(request: pb.EmbedRequest, fingerprint: str) -> pb.EmbedResponse:
    values = [value for text in request.texts for value in vector_of(text)]
    return pb.EmbedResponse(
        model="scripted",
        rows=len(request.texts),
        dim=2,
        vectors=struct.pack(f"<{len(values)}f", *values),
        fingerprint=fingerprint,
        input_tokens=[1] * len(request.texts),
    )


async def _ready() -> None:
    """Nothing to load."""
