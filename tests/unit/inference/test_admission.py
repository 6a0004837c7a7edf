"""The queue's promises: budgets, similar lengths, two lanes, no starvation, exact book-keeping."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from inference.admission import INTERACTIVE_BATCHES_BEFORE_BULK, AdmissionQueue, BatchBudgets, Ticket
from inference.testing import FakeWork
from mesh.context import Priority
from mesh.deadline import Deadline

Queue = AdmissionQueue[FakeWork, int]


def ticket(lengths: Sequence[int], priority: Priority = Priority.INTERACTIVE) -> Ticket[FakeWork, int]:
    """One caller's work: items of these lengths."""
    works = [FakeWork(tokens, value) for value, tokens in enumerate(lengths)]
    return Ticket(works, Deadline.after(60), priority, admitted_at=0.0)


def queue_of(budget: int, *tickets: Ticket[FakeWork, int]) -> Queue:
    """A queue with ``tickets`` in this order."""
    queue: Queue = AdmissionQueue(budget)
    for each in tickets:
        queue.add(each)
    return queue


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)
lanes = st.sampled_from(list(Priority))


@given(st.lists(st.tuples(lengths, lanes), min_size=1, max_size=6), st.integers(1, 100))
def test_every_item_is_taken_exactly_once_in_batches_within_the_budget(
    requests: list[tuple[list[int], Priority]], budget: int
) -> None:
    """Whatever waits leaves once, in rectangles that fit the budget unless one item alone is longer."""
    queue = queue_of(budget, *(ticket(*request) for request in requests))
    seen: set[tuple[int, int]] = set()
    while batch := queue.take():
        assert len(batch) * max(entry.tokens for entry in batch) <= budget or len(batch) == 1
        fresh = {(id(entry.ticket), entry.index) for entry in batch}
        assert len(fresh) == len(batch)
        assert not fresh & seen
        seen |= fresh
    assert len(seen) == sum(len(request[0]) for request in requests)
    assert queue.tokens == 0
    assert len(queue) == 0


@given(st.lists(lengths, min_size=1, max_size=5), st.integers(10, 80))
def test_the_oldest_item_is_in_the_next_batch(requests: list[list[int]], budget: int) -> None:
    """No stream of items of another length keeps an item waiting."""
    queue = queue_of(budget, *map(ticket, requests))
    while len(queue):
        oldest = next(iter(queue._lanes[Priority.INTERACTIVE].values()))
        assert oldest in queue.take()


arrivals = st.lists(st.tuples(st.integers(1, 40), lanes), min_size=1, max_size=5)


@given(st.lists(st.tuples(st.integers(1, 40), lanes), min_size=1, max_size=20), arrivals, st.integers(1, 100))
def test_no_item_waits_longer_than_its_place_in_its_lane_says(
    waiting: list[tuple[int, Priority]], arriving: list[tuple[int, Priority]], budget: int
) -> None:
    """Whatever keeps arriving behind it in either lane, the n-th of its lane is taken within n turns of both lanes."""
    tickets = [ticket([tokens], priority) for tokens, priority in waiting]
    queue = queue_of(budget, *tickets)
    taken: dict[int, int] = {}
    for turn in range(1, (INTERACTIVE_BATCHES_BEFORE_BULK + 1) * len(waiting) + 1):
        for tokens, priority in arriving:
            queue.add(ticket([tokens], priority))
        taken.update({id(entry.ticket): turn for entry in queue.take()})
    places = dict.fromkeys(Priority, 0)
    for each in tickets:
        places[each.priority] += 1
        assert taken[id(each)] <= (INTERACTIVE_BATCHES_BEFORE_BULK + 1) * places[each.priority]


def test_a_batch_holds_items_of_similar_length() -> None:
    """Short items are not padded to a long one while there are other short ones."""
    queue = queue_of(24, ticket([3, 20, 3, 21, 3, 3]))
    assert sorted(entry.tokens for entry in queue.take()) == [3, 3, 3, 3]


def test_interactive_goes_before_bulk() -> None:
    """An interactive request overtakes bulk work that came first."""
    queue = queue_of(10, ticket([10] * 3, Priority.BULK), ticket([10]))
    assert queue.take()[0].ticket.priority is Priority.INTERACTIVE


def test_bulk_is_not_starved() -> None:
    """With both lanes full, every fifth batch is bulk."""
    queue = queue_of(10, ticket([10] * 3, Priority.BULK), ticket([10] * 20))
    order = [queue.take()[0].ticket.priority for _ in range(INTERACTIVE_BATCHES_BEFORE_BULK + 1)]
    assert order == [Priority.INTERACTIVE] * INTERACTIVE_BATCHES_BEFORE_BULK + [Priority.BULK]


def test_an_interactive_batch_takes_no_bulk_along() -> None:
    """A lone interactive item is computed as fast as if there were no bulk work."""
    queue = queue_of(40, ticket([10] * 8, Priority.BULK), ticket([10]))
    assert len(queue.take()) == 1


def test_room_in_a_bulk_batch_is_filled_with_interactive_work() -> None:
    """When it is bulk's turn, waiting interactive items of its length share the batch."""
    queue = queue_of(20, ticket([10], Priority.BULK), ticket([10] * 40))
    batches = [queue.take() for _ in range(INTERACTIVE_BATCHES_BEFORE_BULK + 1)]
    assert {entry.ticket.priority for entry in batches[-1]} == set(Priority)


def test_each_lane_keeps_its_own_budget() -> None:
    """Bulk batches can be short while interactive ones are not."""
    queue = queue_of(100, ticket([10] * 20, Priority.BULK), ticket([10] * 5))
    budgets = BatchBudgets(tokens=50, bulk_tokens=25)
    assert [len(queue.take(budgets)) for _ in range(2)] == [5, 2]


def test_a_budget_below_one_item_still_moves_the_oldest() -> None:
    """However short batches are to be, each takes one item."""
    queue = queue_of(100, ticket([30, 30], Priority.BULK))
    assert [len(queue.take(BatchBudgets(tokens=1, bulk_tokens=0))) for _ in range(3)] == [1, 1, 0]


def test_a_canary_goes_first_and_alone() -> None:
    """The proof of the engine waits for no request and shares its batch with none."""
    canary = ticket([3])
    canary.canary = True
    queue = queue_of(100, ticket([3] * 5), ticket([3], Priority.BULK), canary)
    waited = queue.canary_waits
    assert [entry.ticket for entry in queue.take()] == [canary]
    assert (waited, queue.canary_waits) == (True, False)
    assert len(queue.take()) == 5


def test_removed_work_is_not_computed() -> None:
    """What a cancelled caller left in the queue is gone, and its tokens with it."""
    kept, dropped = ticket([5, 5]), ticket([5] * 10)
    queue = queue_of(100, dropped, kept)
    queue.remove(dropped)
    assert queue.tokens == 10
    assert {entry.ticket for entry in queue.take()} == {kept}


def test_an_item_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    """A budget bounds batches, not what may be asked."""
    queue = queue_of(8, ticket([50, 2]))
    assert [entry.tokens for entry in queue.take()] == [50]
