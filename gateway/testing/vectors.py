"""An embedding worker whose vectors can be told apart, and whose model can change."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from gateway.testing.peers import EMBEDDING_MODEL, FakeEmbedder, FakeHop
from mesh.clients.embedding import EmbeddingInfo, Embeddings, EmbedInputs, EmbedOptions, Timings, TokenInputs, Usage
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, MeshError

LONGEST = 12
"""Characters, or ids, that the worker reads of an input."""


@dataclass
class TellingEmbedder(FakeEmbedder):
    """A vector is drawn from its text, the options and the model, so that no two are equal.

    While ``gate`` is set, answers wait for it. An empty text is refused with its position. ``replicas`` are the
    fingerprints of the workers that take turns.
    """

    hop: FakeHop = field(default_factory=lambda: FakeHop("embedding"))
    dimensions: int = 4
    replicas: list[str] = field(default_factory=lambda: ["fake"])
    gate: asyncio.Event | None = None
    silent: bool = False
    left: int = 0
    finished: int = 0

    async def embed(
        self, inputs: EmbedInputs, options: EmbedOptions | None = None, *, deadline: Deadline | None = None
    ) -> Embeddings:
        """One vector per input."""
        options = options or EmbedOptions()
        fingerprint = self._next_replica()
        self.asked(deadline, inputs, options)
        try:
            await (self.gate.wait() if self.gate is not None else asyncio.sleep(0))
        except asyncio.CancelledError:
            self.left += 1
            raise
        if self.error is not None:
            raise self.error
        self.finished += 1
        return self.answer(inputs, options, fingerprint)

    def answer(self, inputs: EmbedInputs, options: EmbedOptions, fingerprint: str) -> Embeddings:
        """What a worker with this fingerprint answers."""
        contents: Sequence[Sequence[object]] = inputs.ids if isinstance(inputs, TokenInputs) else inputs
        for position, content in enumerate(contents):
            if not content:
                raise InvalidRequest(f"input[{position}] is empty.", param=f"input[{position}]", reason="EMPTY_INPUT")
        dim = options.dimensions or self.dimensions
        tokens = tuple(min(len(content), LONGEST) + 2 for content in contents)
        decided_by = (dim, options.normalize is not False, options.truncation, options.input_type, fingerprint)
        characters = 0 if isinstance(inputs, TokenInputs) else sum(map(len, inputs))
        return Embeddings(
            model=EMBEDDING_MODEL,
            rows=len(contents),
            dim=dim,
            vectors=b"".join(_vector(f"{content!r} {decided_by}", dim) for content in contents),
            usage=Usage(sum(tokens), characters),
            timings=Timings(3, 1, 1, 1, len(contents)),
            truncated_inputs=tuple(position for position, each in enumerate(contents) if len(each) > LONGEST),
            fingerprint=fingerprint,
            input_tokens=tokens,
        )

    @property
    def computed(self) -> list[object]:
        """Every input that was asked for, in the order of asking."""
        asked = [call.arguments[0] for call in self.calls if call.arguments]
        return [each for inputs in asked for each in (inputs.ids if isinstance(inputs, TokenInputs) else inputs)]

    async def info(self, *, deadline: Deadline | None = None) -> EmbeddingInfo:
        """One model, with the next replica's fingerprint; never, where it is ``silent``."""
        if self.silent:
            await asyncio.Event().wait()
        self.fingerprint = self.replicas[0]
        return await super().info(deadline=deadline)

    def restart(self, *fingerprints: str) -> None:
        """Other workers serve from now on."""
        self.replicas = list(fingerprints)
        self.hop.serving_since += 1

    def fail(self, error: MeshError | None) -> None:
        """Answer with ``error`` from now on."""
        self.error = error

    def _next_replica(self) -> str:
        self.replicas.append(self.replicas.pop(0))
        return self.replicas[-1]


def _vector(seed: str, dim: int) -> bytes:
    rng = random.Random(blake2b(seed.encode("utf-8", "surrogatepass")).digest())  # noqa: S311 - nothing secret
    return struct.pack(f"<{dim}f", *(rng.uniform(-1, 1) for _ in range(dim)))
