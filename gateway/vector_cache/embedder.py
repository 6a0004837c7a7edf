"""An embedder that computes a text once: kept vectors first, then computations under way, then the worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from gateway.answers import whole
from gateway.peers import Embedder, PeerHop
from gateway.vector_cache.entries import Entry, entries_of, pack, unpack, worth_keeping
from gateway.vector_cache.flights import Flight, Flights, time_is_up
from gateway.vector_cache.keys import characters_of, count_of, keys_of, some_of
from gateway.vector_cache.metrics import VECTOR_CACHE_GARBAGE, VECTOR_CACHE_INPUTS
from gateway.vector_cache.served import Served, ServedModels
from gateway.vector_cache.stores import VectorStore
from mesh.clients.embedding import FLOAT_BYTES, EmbeddingInfo, Embeddings, EmbedInputs, EmbedOptions, Timings, Usage
from mesh.context import current_priority
from mesh.deadline import Deadline
from mesh.errors import BreakerEffect, MeshError

_NO_TIME = Timings(total_us=0, tokenization_us=0, queue_us=0, inference_us=0, batch_size=0)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request, and under which key each of its inputs is known."""

    inputs: EmbedInputs
    options: EmbedOptions
    deadline: Deadline
    keys: Sequence[bytes]

    def part(self, keys: Iterable[bytes]) -> EmbedInputs:
        """The inputs of these keys, each once."""
        positions = {key: position for position, key in enumerate(self.keys)}
        return some_of(self.inputs, [positions[key] for key in keys])


@dataclass(slots=True)
class _Gathered:
    """What an answer is put together from.

    Attributes:
        kept: what was found in the store, by key.
        entries: that and what was computed, by key.
        models: who computed the parts.
        timings: of the computations.
        computing: what was last asked of the worker for this request.
        computed: how many inputs were computed for this request.
    """

    kept: Mapping[bytes, Entry]
    entries: dict[bytes, Entry]
    models: set[Served]
    timings: list[Timings] = field(default_factory=list)
    computing: Sequence[bytes] = ()
    computed: int = 0

    def take(self, keys: Sequence[bytes], reply: Embeddings, *, wanted: Iterable[bytes] | None = None) -> None:
        """Add what a reply gives for ``keys``, or for the ``wanted`` ones of them."""
        self.models.add(Served(reply.model, reply.fingerprint))
        self.timings.append(reply.timings)
        found = dict(zip(keys, entries_of(reply) or (), strict=False))
        self.entries.update((key, found[key]) for key in (keys if wanted is None else wanted) if key in found)

    def fits(self, keys: Iterable[bytes]) -> bool:
        """Whether the parts make one answer: all are there, of one length, from one model."""
        lengths = {len(entry.vector) if entry else None for entry in map(self.entries.get, keys)}
        return len(self.models) == len(lengths) == 1 and None not in lengths


class CachedEmbedder:
    """Wraps an embedder; its answers are the wrapped one's.

    All vectors of an answer come from one model. Where the parts of a request would come from two, because a worker was
    just replaced or replicas differ, the whole is computed anew. What the wrapped embedder refuses is refused in its
    own words about the whole request.

    Args:
        embedder: who computes; closed with this one.
        store: where vectors are kept; closed with this one.
        seconds: the time that a computation gets, whoever waits for it.
        served: which model serves now.
    """

    def __init__(self, embedder: Embedder, store: VectorStore, *, seconds: float, served: ServedModels) -> None:
        self._embedder = embedder
        self._store = store
        self._seconds = seconds
        self._served = served
        self._flights = Flights()

    @property
    def hop(self) -> PeerHop:
        """The way to the worker."""
        return self._embedder.hop

    def start(self) -> None:
        """Connect and probe."""
        self._embedder.start()

    async def close(self) -> None:
        """End what is under way, and leave worker and store."""
        await self._served.close()
        await self._flights.close()
        await self._embedder.close()
        await self._store.close()

    async def info(self, *, deadline: Deadline | None = None) -> EmbeddingInfo:
        """What is served."""
        return await self._embedder.info(deadline=deadline)

    async def embed(
        self, inputs: EmbedInputs, options: EmbedOptions | None = None, *, deadline: Deadline | None = None
    ) -> Embeddings:
        """The vectors of ``inputs``. Usage counts every input, kept or not; ``cache_hits`` says how many were kept."""
        options = options or EmbedOptions()
        deadline = deadline or Deadline.after(self._seconds, imposed=True)
        deadline.require()
        served = await self._served.now(options.model, deadline)
        if not count_of(inputs) or (served is not None and not served.fingerprint):
            return await self._whole(inputs, options, deadline, outcome="bypassed")
        # While nobody says what serves, nothing kept may be given, but equal texts are computed once all the same: by
        # whoever serves now.
        fingerprint = served.fingerprint if served is not None else f"unknown of {hash(self.hop.servers())}"
        outcome = "miss" if served is not None else "bypassed"
        asked = _Asked(inputs, options, deadline, keys_of(fingerprint, inputs, options))
        kept = await self._kept(asked.keys) if served is not None else {}
        gathered = _Gathered(kept, dict(kept), {served} if served is not None and kept else set())
        try:
            await self._gather(asked, gathered)
        except MeshError as error:
            # A part was refused, and its positions are not the request's.
            if error.breaker is not BreakerEffect.SUCCESS or list(gathered.computing) == list(asked.keys):
                raise
            return await self._whole(inputs, options, deadline, outcome=outcome)
        if not gathered.fits(asked.keys):
            return await self._whole(inputs, options, deadline, outcome=outcome)
        return _assembled(asked, gathered, outcome=outcome)

    async def _kept(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        distinct = list(dict.fromkeys(keys))
        found: dict[bytes, Entry] = {}
        for key, value in zip(distinct, await self._store.get(distinct), strict=True):
            if value is None:
                continue
            entry = unpack(key, value)
            if entry is None:
                VECTOR_CACHE_GARBAGE.inc()
            else:
                found[key] = entry
        return found

    async def _gather(self, asked: _Asked, gathered: _Gathered) -> None:
        """Add to what is kept what is under way, and compute the rest."""
        mine: list[bytes] = []
        joined: dict[Flight, list[bytes]] = {}
        for key in dict.fromkeys(asked.keys):
            if key in gathered.kept:
                continue
            flight = self._flights.under_way(key, current_priority())
            if flight is None:
                mine.append(key)
            else:
                joined.setdefault(flight, []).append(key)
        with ExitStack() as held:
            # All of them before the first is waited for: one that nobody holds ends.
            for flight in joined:
                held.enter_context(flight.held())
            if mine:
                gathered.computing = mine
                gathered.computed += len(mine)
                own = self._begin(asked, mine)
                held.enter_context(own.held())
                gathered.take(mine, await own.result(asked.deadline, joined=False))
            await self._join(asked, joined, gathered)

    def _begin(self, asked: _Asked, keys: Sequence[bytes]) -> Flight:
        part, options = asked.part(keys), asked.options
        # Others may wait for it as well, so it gets the mesh's time rather than this caller's, however short that is.
        deadline = asked.deadline if asked.deadline.imposed else Deadline.after(self._seconds, imposed=True)
        work = self._compute(part, options, deadline)
        return self._flights.begin(keys, current_priority(), work, keep=lambda reply: self._keep(part, options, reply))

    async def _join(self, asked: _Asked, joined: Mapping[Flight, Sequence[bytes]], gathered: _Gathered) -> None:
        """Wait for the others' computations; compute for this request alone what they fail to give."""
        remaining: list[bytes] = []
        for flight, keys in joined.items():
            try:
                gathered.take(flight.keys, await flight.result(asked.deadline, joined=True), wanted=keys)
            except MeshError as error:
                if asked.deadline.expired:
                    raise time_is_up(asked.deadline) from error
                # Perhaps for a reason of its own: another text in it was refused, or was too much.
                remaining += keys
        if remaining:
            gathered.computing = remaining
            gathered.computed += len(remaining)
            part = asked.part(remaining)
            reply = await self._compute(part, asked.options, asked.deadline)
            await self._flights.keep_beside(reply, lambda found: self._keep(part, asked.options, found))
            gathered.take(remaining, reply)

    async def _whole(
        self, inputs: EmbedInputs, options: EmbedOptions, deadline: Deadline, *, outcome: str
    ) -> Embeddings:
        """The whole request, computed for this caller alone."""
        VECTOR_CACHE_INPUTS.labels(outcome).inc(count_of(inputs))
        reply = await self._compute(inputs, options, deadline)
        await self._flights.keep_beside(reply, lambda found: self._keep(inputs, options, found))
        return replace(reply, usage=replace(reply.usage, cache_hits=0))

    async def _compute(self, inputs: EmbedInputs, options: EmbedOptions, deadline: Deadline) -> Embeddings:
        servers = self._embedder.hop.servers()
        reply = whole(await self._embedder.embed(inputs, options, deadline=deadline), count_of(inputs))
        self._served.learn(options.model, Served(reply.model, reply.fingerprint), asked=servers)
        return reply

    async def _keep(self, inputs: EmbedInputs, options: EmbedOptions, reply: Embeddings) -> None:
        entries = entries_of(reply)
        if entries is not None:
            # Under the model that answered, which need not be the one that was expected.
            keys = keys_of(reply.fingerprint, inputs, options)
            await self._store.put(
                {key: pack(key, entry) for key, entry in zip(keys, entries, strict=True) if worth_keeping(entry)}
            )


def _assembled(asked: _Asked, gathered: _Gathered, *, outcome: str) -> Embeddings:
    entries = [gathered.entries[key] for key in asked.keys]
    hits = sum(key in gathered.kept for key in asked.keys)
    VECTOR_CACHE_INPUTS.labels("hit").inc(hits)
    VECTOR_CACHE_INPUTS.labels(outcome).inc(gathered.computed)
    VECTOR_CACHE_INPUTS.labels("shared").inc(len(entries) - hits - gathered.computed)
    (model,) = gathered.models
    tokens = tuple(entry.tokens for entry in entries)
    return Embeddings(
        model=model.name,
        rows=len(entries),
        dim=len(entries[0].vector) // FLOAT_BYTES,
        vectors=b"".join([entry.vector for entry in entries]),
        usage=Usage(sum(tokens), characters_of(asked.inputs), cache_hits=hits),
        timings=max(gathered.timings, key=lambda timings: timings.total_us, default=_NO_TIME),
        truncated_inputs=tuple(position for position, entry in enumerate(entries) if entry.truncated),
        fingerprint=model.fingerprint,
        input_tokens=tokens,
    )
