"""Who is blamed for a failed batch, and how often the engine is asked to find out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference.admission import Entry, Ticket
from inference.engines import DeviceOutOfMemory
from inference.recovery import DOUBTFUL_PARTS, GivenUp, Recovery
from inference.testing import FakeWork
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import Internal, Unavailable

Batch = list[Entry[FakeWork, int]]
ERROR = ValueError("poisoned")


def entries_of(given_up: list[GivenUp[FakeWork, int]]) -> Batch:
    """All that is not tried again."""
    return [entry for each in given_up for entry in each.entries]


def canary() -> Batch:
    """The batch that proves the engine."""
    batch = batch_of(1)
    batch[0].ticket.canary = True
    return batch


def batch_of(*sizes: int) -> Batch:
    """One batch that holds requests of so many items."""
    entries: Batch = []
    for size in sizes:
        works = [FakeWork(4, value) for value in range(size)]
        ticket: Ticket[FakeWork, int] = Ticket(works, Deadline.after(60), Priority.INTERACTIVE, admitted_at=0.0)
        entries += [Entry(len(entries) + index, ticket, index, 4) for index in range(size)]
    return entries


@given(st.lists(st.integers(1, 5), min_size=1, max_size=64), st.data())
def test_one_request_at_fault_is_found_and_fails_alone(sizes: list[int], data: st.DataObject) -> None:
    """Whichever of a batch's requests it is, all others are computed, in few tries."""
    batch = batch_of(*sizes)
    guilty = data.draw(st.sampled_from(batch)).ticket
    recovery: Recovery[FakeWork, int] = Recovery()
    given_up, computed, tries, part = Batch(), Batch(), 0, batch
    while part:
        tries += 1
        if any(entry.ticket is guilty for entry in part):
            given_up += entries_of(recovery.failed(part, ERROR))
        else:
            recovery.succeeded()
            computed += part
        part = recovery.take(10**9)
    assert {id(entry.ticket) for entry in given_up} == {id(guilty)}
    assert len(given_up) + len(computed) == len(batch)
    assert tries <= 2 * len(sizes).bit_length() + 1


def test_a_single_request_fails_at_once() -> None:
    """Its items need not be told apart: they fail together in any case."""
    recovery: Recovery[FakeWork, int] = Recovery()
    batch = batch_of(32)
    assert entries_of(recovery.failed(batch, ERROR)) == batch
    assert len(recovery) == 0


def test_memory_is_found_by_halving_items_and_the_rest_is_cut_to_it() -> None:
    """After the size that fits is known, no part is tried that is larger."""
    recovery: Recovery[FakeWork, int] = Recovery()
    part, tries, computed, fits = batch_of(64), 0, 0, 4 * 4
    budget = 10**9
    while part:
        tries += 1
        if len(part) * 4 > fits:
            budget = min(budget, len(part) * 4 // 2)
            assert recovery.failed(part, DeviceOutOfMemory()) == []
        else:
            recovery.succeeded()
            computed += len(part)
        part = recovery.take(budget)
    assert (tries, computed) == (4 + 64 // 4, 64)


def run_through(recovery: Recovery[FakeWork, int], batch: Batch, guilty: set[int]) -> tuple[Batch, list[type], int]:
    """Try ``batch`` and its parts to the end: what was computed, how the others failed, and in how many tries."""
    computed, failures, tries, part = Batch(), list[type](), 0, batch
    while part:
        tries += 1
        if any(id(entry.ticket) in guilty for entry in part):
            given_up = recovery.failed(part, ERROR)
        else:
            computed += part
            given_up = recovery.succeeded()
        failures += [type(each.failure) for each in given_up for _ in each.entries]
        part = recovery.take(10**9)
    failures += [type(each.failure) for each in recovery.fresh() for _ in each.entries]
    return computed, failures, tries


@given(st.sets(st.integers(0, 63), max_size=63))
def test_however_many_requests_are_at_fault_all_others_are_computed(positions: set[int]) -> None:
    """One innocent among poisonous ones is enough to clear the engine, and to blame those that failed alone."""
    batch = batch_of(*[1] * 64)
    guilty = {id(batch[position].ticket) for position in positions}
    recovery: Recovery[FakeWork, int] = Recovery()
    computed, failures, tries = run_through(recovery, batch, guilty)
    assert len(computed) == 64 - len(positions)
    assert len(failures) == len(positions)
    assert tries <= 2 * 64


def test_where_nothing_is_computed_at_all_the_engine_is_at_fault() -> None:
    """Each request is tried once, and its caller may ask another worker; nothing is held against the next batch."""
    recovery: Recovery[FakeWork, int] = Recovery()
    batch = batch_of(*[1] * 100)
    computed, failures, tries = run_through(recovery, batch, {id(entry.ticket) for entry in batch})
    assert (computed, failures) == ([], [Unavailable] * 100)
    assert tries <= 100 + DOUBTFUL_PARTS
    again = batch_of(*[1] * 64)
    computed, failures, _ = run_through(recovery, again, {id(again[0].ticket)})
    assert (len(computed), failures) == (63, [Internal])


def test_a_failing_canary_ends_all_tries_until_something_is_computed() -> None:
    """It decides at once what parts could only suggest; the next batches cost one try each."""
    recovery: Recovery[FakeWork, int] = Recovery()
    batch, proof = batch_of(*[1] * 500), canary()
    part = batch
    for _ in range(DOUBTFUL_PARTS + 3):
        assert recovery.failed(part, ERROR) == []
        part = recovery.take(10**9)
    recovery.fresh()
    given_up = recovery.failed(proof, ERROR)
    assert len(entries_of(given_up)) == 500 - len(part) + len(proof)
    assert {type(each.failure) for each in given_up} == {Unavailable}
    assert len(recovery) == 0
    again = batch_of(1, 1)
    assert entries_of(recovery.failed(again, ERROR)) == again
    recovery.succeeded()
    assert recovery.failed(batch_of(1, 1), ERROR) == []


def test_a_canary_that_succeeds_clears_the_engine() -> None:
    """What failed alone is then at fault itself, and splitting goes on as from the start."""
    recovery: Recovery[FakeWork, int] = Recovery()
    part = batch_of(*[1] * 100)
    for _ in range(DOUBTFUL_PARTS + 3):
        assert recovery.failed(part, ERROR) == []
        part = recovery.take(10**9)
    assert len(part) == 1
    recovery.fresh()
    assert [type(each.failure) for each in recovery.succeeded()] == [Internal] * 3
    assert len(recovery.take(10**9)) > 1


def test_single_requests_that_fail_do_not_raise_doubts() -> None:
    """A client that repeats a poisonous request is told each time that it is the request."""
    recovery: Recovery[FakeWork, int] = Recovery()
    for _ in range(10 * DOUBTFUL_PARTS):
        recovery.fresh()
        (given_up,) = recovery.failed(batch_of(1), ERROR)
        assert isinstance(given_up.failure, Internal)
