"""Who is blamed for a failed batch, and how often the engine is asked to find out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference.admission import Entry, Ticket
from inference.recovery import FUTILE_PARTS, Recovery
from inference.testing import FakeWork
from mesh.context import Priority
from mesh.deadline import Deadline

Batch = list[Entry[FakeWork, int]]


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
            given_up += recovery.failed(part, out_of_memory=False)
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
    assert recovery.failed(batch, out_of_memory=False) == batch
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
            assert recovery.failed(part, out_of_memory=True) == []
        else:
            recovery.succeeded()
            computed += len(part)
        part = recovery.take(budget)
    assert (tries, computed) == (4 + 64 // 4, 64)


def test_an_engine_that_fails_everything_is_not_asked_for_ever() -> None:
    """After some tries without a success all that is left is given up, at the next batch at once."""
    recovery: Recovery[FakeWork, int] = Recovery()
    batch = batch_of(*[1] * 500)
    tries, given_up, part = 0, Batch(), batch
    while part:
        tries += 1
        given_up += recovery.failed(part, out_of_memory=False)
        part = recovery.take(10**9)
    assert tries == FUTILE_PARTS
    assert len(given_up) == len(batch)
    recovery.fresh()
    again = batch_of(1, 1)
    assert recovery.failed(again, out_of_memory=False) == again
    recovery.succeeded()
    assert recovery.failed(batch_of(1, 1), out_of_memory=False) == []


def test_single_requests_that_fail_do_not_make_splitting_futile() -> None:
    """A client that repeats a poisonous request does not keep a later batch from being split."""
    recovery: Recovery[FakeWork, int] = Recovery()
    for _ in range(10 * FUTILE_PARTS):
        recovery.fresh()
        assert recovery.failed(batch_of(1), out_of_memory=False)
    assert not recovery.futile
