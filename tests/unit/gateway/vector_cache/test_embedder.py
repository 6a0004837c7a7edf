"""Hits, misses and computations that are shared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from gateway.testing.vectors import TellingEmbedder
from gateway.vector_cache.embedder import CachedEmbedder
from gateway.vector_cache.served import PATIENCE_SECONDS
from mesh.clients.embedding import Embeddings, EmbedInputs, EmbedOptions, InputType, TokenInputs, Truncation
from mesh.context import CallContext, Priority, current_call
from mesh.deadline import Deadline
from mesh.errors import AttemptTimedOut, DeadlineExceeded, InvalidRequest, Overloaded, Unavailable


async def until(condition: Callable[[], object]) -> None:
    """Let the others run until it holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


def _has_computed(worker: TellingEmbedder, least: int) -> bool:
    return len(worker.computed) >= least


def same(found: Embeddings, worker: TellingEmbedder, inputs: EmbedInputs, fingerprint: str = "fake") -> bool:
    """Whether it is what the worker itself answers, apart from where the time went."""
    own = worker.answer(inputs, EmbedOptions(), fingerprint)
    hits = found.usage.cache_hits
    return found == replace(own, timings=found.timings, usage=replace(own.usage, cache_hits=hits))


async def test_what_was_computed_is_not_computed_again(cached: CachedEmbedder, worker: TellingEmbedder) -> None:
    """Only new texts reach the worker; tokens, characters and truncation are those of the whole request."""
    await cached.embed(["a", "a long one, really"])
    found = await cached.embed(["b", "a long one, really", "a", "b"])
    assert same(found, worker, ["b", "a long one, really", "a", "b"])
    assert (worker.computed, found.usage.cache_hits, found.truncated_inputs) == (
        ["a", "a long one, really", "b"],
        2,
        (1,),
    )
    again = await cached.embed(["b", "b"])
    assert (again.usage.cache_hits, again.timings.total_us, worker.finished) == (2, 0, 2)


async def test_ids_are_kept_too_and_are_not_their_text(cached: CachedEmbedder, worker: TellingEmbedder) -> None:
    """The model's own ids, and the text that looks like them."""
    for _ in range(2):
        found = await cached.embed(TokenInputs([[1, 2], [12]]))
        assert same(found, worker, TokenInputs([[1, 2], [12]]))
    assert same(await cached.embed(["1,2"]), worker, ["1,2"])
    assert worker.computed == [[1, 2], [12], "1,2"]


async def test_whatever_decides_a_vector_is_part_of_its_key(cached: CachedEmbedder, worker: TellingEmbedder) -> None:
    """Options, and the tenant, who must not learn what others send; an alias is the same model."""
    variants = [
        EmbedOptions(),
        EmbedOptions(dimensions=2),
        EmbedOptions(normalize=False),
        EmbedOptions(normalize=True),
        EmbedOptions(truncation=Truncation.START),
        EmbedOptions(truncation=Truncation.REFUSE),
        EmbedOptions(input_type=InputType.QUERY),
        EmbedOptions(input_type=InputType.DOCUMENT),
        EmbedOptions(prompt_name="s2p"),
    ]
    for options in variants:
        assert (await cached.embed(["a"], options)).vectors == worker.answer(["a"], options, "fake").vectors
    assert len(worker.computed) == len(variants)
    await cached.embed(["a"], EmbedOptions(model="all-MiniLM-L6-v2"))
    assert len(worker.computed) == len(variants)
    token = current_call.set(CallContext(tenant="another"))
    assert (await cached.embed(["a"])).usage.cache_hits == 0
    current_call.reset(token)


async def test_equal_texts_under_way_are_computed_once(cached: CachedEmbedder, worker: TellingEmbedder) -> None:
    """Of requests that come together each asks for what no other asked for yet."""
    worker.gate = asyncio.Event()
    requests: list[Sequence[str]] = [["a", "b"], ["b", "c", "b"], ["c", "a"], ["a"]]
    answers = [asyncio.create_task(cached.embed(list(texts))) for texts in requests]
    await until(lambda: len(worker.computed) == 3)
    worker.gate.set()
    for texts, found in zip(requests, await asyncio.gather(*answers), strict=True):
        assert same(found, worker, texts)
        assert found.usage.cache_hits == 0
    assert sorted(map(str, worker.computed)) == ["a", "b", "c"]


async def test_a_caller_that_leaves_takes_nothing_from_the_others(
    cached: CachedEmbedder, worker: TellingEmbedder
) -> None:
    """The first one began the computation, and is cancelled; the second gets its answer from it."""
    worker.gate = asyncio.Event()
    first, second = (asyncio.create_task(cached.embed(["a"])) for _ in range(2))
    await until(lambda: worker.computed)
    first.cancel()
    await asyncio.wait({first})
    worker.gate.set()
    assert same(await second, worker, ["a"])
    assert (first.cancelled(), worker.computed, worker.left) == (True, ["a"], 0)


async def test_a_short_deadline_fails_nobody_else(cached: CachedEmbedder, worker: TellingEmbedder) -> None:
    """The first one's time is up; the computation that it began had the mesh's time."""
    worker.gate = asyncio.Event()
    first = asyncio.create_task(cached.embed(["a"], deadline=Deadline.after(0.02)))
    await until(lambda: worker.computed)
    second = asyncio.create_task(cached.embed(["a"]))
    with pytest.raises(DeadlineExceeded):
        await first
    worker.gate.set()
    assert same(await second, worker, ["a"])
    assert worker.computed == ["a"]
    assert worker.calls[-1].seconds > 5


@pytest.mark.parametrize(("imposed", "error"), [(True, AttemptTimedOut), (False, DeadlineExceeded)])
async def test_who_joins_waits_no_longer_than_its_own_time(
    imposed: bool, error: Any, cached: CachedEmbedder, worker: TellingEmbedder
) -> None:
    """Also where the mesh set its time, of which another had more left. Its end is the mesh's or its own."""
    worker.gate = asyncio.Event()
    first = asyncio.create_task(cached.embed(["a"]))
    await until(lambda: worker.computed)
    async with asyncio.timeout(5):
        with pytest.raises(error):
            await cached.embed(["a"], deadline=Deadline.after(0.02, imposed=imposed))
    worker.gate.set()
    assert same(await first, worker, ["a"])
    assert worker.computed == ["a"]


async def test_what_nobody_waits_for_is_not_computed(cached: CachedEmbedder, worker: TellingEmbedder) -> None:
    """When the last one leaves, the worker's call is cancelled, and who comes then begins anew."""
    worker.gate = asyncio.Event()
    leaving = [asyncio.create_task(cached.embed(["a"])) for _ in range(2)]
    await until(lambda: worker.computed)
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)
    after = asyncio.create_task(cached.embed(["a"]))
    await until(lambda: len(worker.computed) == 2)
    worker.gate.set()
    assert same(await after, worker, ["a"])
    assert worker.left == 1


async def test_interactive_work_does_not_wait_for_bulk_work(cached: CachedEmbedder, worker: TellingEmbedder) -> None:
    """It would stand in the wrong lane. Bulk work may wait for interactive work."""
    worker.gate = asyncio.Event()
    tasks = []
    for priority, least in ((Priority.BULK, 1), (Priority.INTERACTIVE, 2), (Priority.BULK, 2)):
        token = current_call.set(CallContext(priority=priority))
        tasks.append(asyncio.create_task(cached.embed(["a"])))
        current_call.reset(token)
        await until(partial(_has_computed, worker, least))
    for _ in range(5):
        await asyncio.sleep(0)
    worker.gate.set()
    await asyncio.gather(*tasks)
    lanes = [call.context.priority for call in worker.calls if call.arguments and call.context]
    assert lanes == [Priority.BULK, Priority.INTERACTIVE]


async def test_anothers_failure_is_not_mine(cached: CachedEmbedder, worker: TellingEmbedder) -> None:
    """A text that waits together with another's refused one is computed for its own caller."""
    worker.gate = asyncio.Event()
    refused = asyncio.create_task(cached.embed(["a", ""]))
    await until(lambda: worker.computed)
    fine = asyncio.create_task(cached.embed(["a", "b"]))
    await until(lambda: len(worker.computed) == 3)
    worker.gate.set()
    assert same(await fine, worker, ["a", "b"])
    with pytest.raises(InvalidRequest):
        await refused


async def test_a_refusal_names_the_position_in_the_whole_request(
    cached: CachedEmbedder, worker: TellingEmbedder
) -> None:
    """Also where the worker was asked for a part only: after a hit, a duplicate, or beside another's computation."""
    await cached.embed(["a"])
    for texts in (["a", "b", ""], ["c", "c", ""], ["", "a"]):
        with pytest.raises(InvalidRequest) as error:
            await cached.embed(texts)
        assert error.value.param == f"input[{texts.index('')}]"
    before = len(worker.calls)
    with pytest.raises(InvalidRequest):
        await cached.embed(["d", ""])
    assert len(worker.calls) == before + 1


@pytest.mark.parametrize("error", [Unavailable("Down."), Overloaded("Busy.", retry_after=2.0)])
async def test_the_workers_failure_reaches_the_caller_once(
    error: Any, cached: CachedEmbedder, worker: TellingEmbedder
) -> None:
    """A failure is not kept, and not asked for twice."""
    await cached.embed(["a"])
    worker.fail(error)
    before = len(worker.calls)
    with pytest.raises(type(error)) as raised:
        await cached.embed(["a", "b"])
    assert (raised.value, len(worker.calls)) == (error, before + 1)
    assert (await cached.embed(["a"])).usage.cache_hits == 1
    worker.fail(None)
    assert same(await cached.embed(["b"]), worker, ["b"])


async def test_an_expired_request_costs_nothing(cached: CachedEmbedder, worker: TellingEmbedder) -> None:
    """Not even a question."""
    with pytest.raises(DeadlineExceeded):
        await cached.embed(["a"], deadline=Deadline.after(-1))
    assert not worker.calls


async def test_closing_ends_what_is_under_way(cached: CachedEmbedder, worker: TellingEmbedder) -> None:
    """Who waits is told so, typed, and the worker's call is cancelled."""
    worker.gate = asyncio.Event()
    waiting = asyncio.create_task(cached.embed(["a"]))
    await until(lambda: worker.computed)
    await cached.close()
    with pytest.raises(Unavailable):
        await waiting
    assert (worker.left, worker.is_open) == (1, False)


# -- the model changes -------------------------------------------------------------------------------------------------


async def test_a_restarted_worker_with_another_engine_gets_no_old_vectors(
    cached: CachedEmbedder, worker: TellingEmbedder
) -> None:
    """Seen by its coming back, at once. The old one's vectors are good again when it is back."""
    await cached.embed(["a"])
    worker.restart("int8")
    found = await cached.embed(["a"])
    assert same(found, worker, ["a"], "int8")
    assert found.usage.cache_hits == 0
    worker.restart("fake")
    assert (await cached.embed(["a"])).usage.cache_hits == 1


async def test_a_change_that_cannot_be_seen_is_known_within_seconds(
    cached: CachedEmbedder, worker: TellingEmbedder, clock: Any
) -> None:
    """Behind a load balancer the connection stays, so the worker is asked again and again."""
    await cached.embed(["a"])
    worker.replicas = ["int8"]
    clock.advance(5)
    assert same(await cached.embed(["a"]), worker, ["a"], "int8")


async def test_the_workers_word_is_renewed_before_its_end(
    cached: CachedEmbedder, worker: TellingEmbedder, clock: Any
) -> None:
    """Beside the requests, which are answered by the old one: a worker too busy to say what it serves costs no hit."""
    await cached.embed(["a"])
    asked = len(worker.calls)
    clock.advance(2.4)
    assert (await cached.embed(["a"])).usage.cache_hits == 1
    assert len(worker.calls) == asked
    for _ in range(8):
        clock.advance(2.5)
        assert (await cached.embed(["a"])).usage.cache_hits == 1
        for _ in range(3):
            await asyncio.sleep(0)
    assert len(worker.calls) == asked + 8
    worker.silent = True
    clock.advance(4.9)
    for _ in range(5):
        async with asyncio.timeout(0.1):
            assert (await cached.embed(["a"])).usage.cache_hits == 1
    assert worker.finished == 1


async def test_an_answer_tells_of_a_change_as_well(cached: CachedEmbedder, worker: TellingEmbedder) -> None:
    """Parts of two models never stand in one answer; from then on the new one's vectors are asked for."""
    await cached.embed(["a"])
    worker.replicas = ["int8"]
    assert same(await cached.embed(["a", "b"]), worker, ["a", "b"], "int8")
    assert (await cached.embed(["b", "a"])).usage.cache_hits == 2


async def test_a_late_answer_of_one_that_has_gone_does_not_tell_what_serves(
    cached: CachedEmbedder, worker: TellingEmbedder
) -> None:
    """A replica that drains ends its calls; its vectors are not given to requests that it would not get."""
    worker.restart("old")
    worker.gate = gate = asyncio.Event()
    late = asyncio.create_task(cached.embed(["a"]))
    await until(lambda: worker.computed)
    worker.restart("new")
    worker.gate = None
    assert (await cached.embed(["b"])).fingerprint == "new"
    gate.set()
    assert (await late).fingerprint == "old"
    assert same(await cached.embed(["a"]), worker, ["a"], "new")


async def test_replicas_of_different_engines_never_share_an_answer(
    cached: CachedEmbedder, worker: TellingEmbedder
) -> None:
    """Each answer is one replica's, whichever."""
    worker.restart("float32", "int8")
    texts = [str(number % 7) for number in range(40)]
    for start, end in pairwise(range(0, 40, 3)):
        part = texts[start : end + 2]
        found = await cached.embed(part)
        assert same(found, worker, part, "float32") or same(found, worker, part, "int8")


async def test_a_worker_that_tells_no_model_is_asked_every_time(
    cached: CachedEmbedder, worker: TellingEmbedder
) -> None:
    """Without knowing what computed a vector nothing is kept."""
    worker.restart("")
    for _ in range(2):
        found = await cached.embed(["a", "a"])
        assert same(found, worker, ["a", "a"], "")
        assert found.usage.cache_hits == 0
    assert worker.finished == 2


async def test_who_does_not_say_what_it_serves_is_asked_all_the_same(
    cached: CachedEmbedder, worker: TellingEmbedder
) -> None:
    """The question leaves the request the half of its time at least; its answers are kept and tell the model."""
    worker.silent = True
    assert same(await cached.embed(["a"], deadline=Deadline.after(0.2)), worker, ["a"])
    assert (await cached.embed(["a"])).usage.cache_hits == 1


async def test_equal_texts_are_computed_once_while_nobody_says_what_serves(
    cached: CachedEmbedder, worker: TellingEmbedder
) -> None:
    """What is kept may not be given then; what is under way may. A worker that has just come computes its own."""
    worker.silent = True
    worker.gate = asyncio.Event()
    answers = [asyncio.create_task(cached.embed(["a", "a", "b"])) for _ in range(5)]
    all_do_without = asyncio.get_running_loop().time() + 2 * PATIENCE_SECONDS
    await until(lambda: asyncio.get_running_loop().time() > all_do_without)
    worker.restart("new")
    after = asyncio.create_task(cached.embed(["a"]))
    await until(lambda: len(worker.computed) > 2)
    worker.gate.set()
    for found in await asyncio.gather(*answers):
        assert same(found, worker, ["a", "a", "b"])
        assert found.usage.cache_hits == 0
    assert same(await after, worker, ["a"], "new")
    assert worker.computed == ["a", "b", "a"]
