"""Whatever is kept, lost, shared or damaged: an answer with the cache is the answer without it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.testing.vectors import TellingEmbedder
from gateway.vector_cache.embedder import CachedEmbedder
from gateway.vector_cache.served import ServedModels
from gateway.vector_cache.stores import OVERHEAD_BYTES, MemoryStore
from mesh.clients.embedding import Embeddings, EmbedInputs, EmbedOptions, InputType, TokenInputs
from mesh.errors import InvalidRequest

TEXTS = st.sampled_from(["", "a", "b", "ab", "1", "ü", "a text that is cut", "a text that is cut too", "\ud800"])
INPUTS = st.one_of(
    st.lists(TEXTS, max_size=6), st.lists(st.sampled_from([[1], [1, 2], [12]]), min_size=1, max_size=4).map(TokenInputs)
)
OPTIONS = st.builds(
    EmbedOptions,
    dimensions=st.sampled_from([None, 2]),
    normalize=st.sampled_from([None, True, False]),
    input_type=st.sampled_from([InputType.UNSPECIFIED, InputType.QUERY]),
)
ROUNDS = st.lists(
    st.tuples(
        st.lists(st.tuples(INPUTS, OPTIONS), min_size=1, max_size=4),
        st.sampled_from(["", "", "flush", "garbage", "restart", "mixed", "leave"]),
    ),
    max_size=6,
)


class UnreliableStore(MemoryStore):
    """Forgets everything, or gives damaged and other values, when told to; gives way to the loop like a socket."""

    def __init__(self) -> None:
        super().__init__(max_bytes=6 * (OVERHEAD_BYTES + 32), ttl_seconds=60)
        self.garbage = False

    async def get(self, keys: Sequence[bytes]) -> Sequence[object]:
        """As MemoryStore."""
        await asyncio.sleep(0)
        values = list(await super().get(keys))
        if self.garbage:
            values = [
                value if number % 3 == 0 else (value[:-1] + b"?" if isinstance(value, bytes) else b"garbage")
                for number, value in enumerate(reversed(values))
            ]
        return values

    async def put(self, values: Mapping[bytes, bytes]) -> None:
        """As MemoryStore."""
        await asyncio.sleep(0)
        await super().put(values)


async def outcome(embedder: CachedEmbedder, inputs: EmbedInputs, options: EmbedOptions) -> Embeddings | str:
    """The answer, or the refusal."""
    try:
        return await embedder.embed(inputs, options)
    except InvalidRequest as error:
        return error.message


def uncached(worker: TellingEmbedder, inputs: EmbedInputs, options: EmbedOptions, model: str) -> Embeddings | str:
    """What the worker itself answers."""
    try:
        return worker.answer(inputs, options, model)
    except InvalidRequest as error:
        return error.message


def comparable(answer: Embeddings | str) -> Embeddings | str:
    """Without where the time went, and without the count of hits."""
    if isinstance(answer, str):
        return answer
    timings = replace(answer.timings, total_us=0, tokenization_us=0, queue_us=0, inference_us=0, batch_size=0)
    return replace(answer, timings=timings, usage=replace(answer.usage, cache_hits=None))


@settings(max_examples=150, deadline=None)
@given(ROUNDS)
def test_a_cached_answer_is_the_uncached_one(rounds: list[tuple[list[tuple[EmbedInputs, EmbedOptions]], str]]) -> None:
    """Any requests, side by side and one after another, with evictions, a flushed or damaged store, a worker that is
    replaced, replicas that differ, and callers that leave: vectors, order, tokens, characters, truncation, refusals.
    """
    asyncio.run(_run(rounds))


async def _run(rounds: list[tuple[list[tuple[EmbedInputs, EmbedOptions]], str]]) -> None:
    worker, store = TellingEmbedder(), UnreliableStore()
    cached = CachedEmbedder(worker, store, seconds=10, served=ServedModels(worker, info_seconds=1))
    for number, (requests, event) in enumerate(rounds):
        if event == "flush":
            await store.close()
        if event == "restart":
            worker.restart(f"model {number % 2}")
        if event == "mixed":
            worker.restart("model 0", "model 1")
        store.garbage = event == "garbage"
        tasks = [asyncio.create_task(outcome(cached, inputs, options)) for inputs, options in requests]
        if event == "leave":
            await asyncio.sleep(0)
            tasks[0].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for (inputs, options), answer in zip(requests, answers, strict=True):
            if isinstance(answer, asyncio.CancelledError) and event == "leave":
                continue
            assert not isinstance(answer, BaseException), answer
            allowed = [uncached(worker, inputs, options, model) for model in worker.replicas]
            assert comparable(answer) in map(comparable, allowed)
    await cached.close()
