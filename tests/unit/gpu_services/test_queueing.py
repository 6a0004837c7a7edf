"""Ten times more documents than can be done: who is let in is done in time, and bulk work moves all the while."""

from __future__ import annotations

import heapq
import random
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from gpu_services.chunking.queueing import Places, Queue
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import Overloaded
from mesh.testing import FakeClock

DOCUMENT_SECONDS = 1.0


@dataclass(eq=False)
class Document:
    """One that was let in, from its arrival to its end."""

    priority: Priority
    deadline: Deadline
    arrived: float
    inside: ExitStack = field(default_factory=ExitStack)

    def done(self) -> bool:
        """It waits as long as it must."""
        return False


class Simulation:
    """A queue before ``children`` in simulated time: documents come, are converted by whoever is free, and go."""

    def __init__(self, *, children: int, spread: float, reserved: int = 0) -> None:
        self.clock = FakeClock(0.0)
        places = Places(children=children, reserved=reserved, queued=64)
        self.queue: Queue[Document] = Queue(places, clock=self.clock)
        self.free = places.at_once
        self.longest_wait = dict.fromkeys(Priority, 0.0)
        self.random = random.Random(11)
        self.spread = spread
        self.ends: list[tuple[float, int, Document]] = []
        self.in_time = dict.fromkeys(Priority, 0)
        self.late = 0
        self.refused: list[float | None] = []

    def run(self, rate: dict[Priority, float], seconds: float, deadline: float) -> None:
        """Offer documents of each lane at its rate, and let all end."""
        arrivals = [(self.random.expovariate(each), lane.value, lane) for lane, each in rate.items() if each]
        heapq.heapify(arrivals)
        while arrivals or self.ends:
            if arrivals and (not self.ends or arrivals[0][0] <= self.ends[0][0]):
                at, name, lane = heapq.heappop(arrivals)
                self._move_to(at)
                self._arrive(lane, deadline)
                if (following := at + self.random.expovariate(rate[lane])) < seconds:
                    heapq.heappush(arrivals, (following, name, lane))
            else:
                at, _, document = heapq.heappop(self.ends)
                self._move_to(at)
                self._end(document)

    def _move_to(self, at: float) -> None:
        self.clock.advance(at - self.clock())

    def _arrive(self, lane: Priority, seconds: float) -> None:
        document = Document(lane, Deadline.after(seconds, self.clock), self.clock())
        try:
            document.inside.enter_context(self.queue.place(document.deadline, lane))
        except Overloaded as error:
            self.refused.append(error.retry_after)
            return
        self.queue.join(document, lane)
        self._hand_out()

    def _end(self, document: Document) -> None:
        document.inside.close()
        self.queue.give_back(document.priority)
        self.free += 1
        if document.deadline.expired:
            self.late += 1
        else:
            self.in_time[document.priority] += 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self.free and (document := self.queue.next()) is not None:
            self.free -= 1
            waited = self.clock() - document.arrived
            self.longest_wait[document.priority] = max(self.longest_wait[document.priority], waited)
            document.inside.enter_context(self.queue.learning(document.priority))
            takes = DOCUMENT_SECONDS * self.random.lognormvariate(0, self.spread)
            heapq.heappush(self.ends, (self.clock() + takes, id(document), document))


@pytest.mark.parametrize("children", [1, 4])
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_ten_times_too_much_costs_no_goodput_and_nobody_who_was_let_in(children: int, spread: float) -> None:
    """As many are done in time as at capacity, 98 of 100 of those let in, and every refusal says when to return."""
    done = []
    for factor in (1.0, 10.0):
        simulation = Simulation(children=children, spread=spread)
        simulation.run({Priority.INTERACTIVE: factor * children / DOCUMENT_SECONDS}, 120.0, 10.0)
        done.append(simulation.in_time[Priority.INTERACTIVE])
    assert done[1] >= 0.95 * done[0]
    assert simulation.late <= 0.02 * done[1]
    assert len(simulation.refused) > 5 * done[1]
    assert all(simulation.refused)


@pytest.mark.parametrize(("children", "reserved"), [(1, 0), (4, 0), (1, 1), (4, 1)])
def test_both_lanes_overloaded_both_move(children: int, reserved: int) -> None:
    """Each lane gets its share of the children, no child is idle, and what is let in is done in time."""
    simulation = Simulation(children=children, reserved=reserved, spread=0.2)
    places = Places(children=children, reserved=reserved, queued=0)
    simulation.run(dict.fromkeys(Priority, 5.0 * children), 240.0, 30.0)
    interactive, bulk = simulation.in_time[Priority.INTERACTIVE], simulation.in_time[Priority.BULK]
    assert interactive + bulk >= 0.9 * places.at_once * 240
    assert interactive == pytest.approx(places.share(Priority.INTERACTIVE) * 240, rel=0.15)
    assert bulk == pytest.approx(places.share(Priority.BULK) * 240, rel=0.15)
    assert simulation.late <= 0.02 * (interactive + bulk)


@pytest.mark.parametrize("children", [1, 4])
def test_an_interactive_document_does_not_wait_beside_a_bulk_job(children: int) -> None:
    """Where a child is reserved; without one it waits until a bulk document is done."""
    waits = []
    for reserved in (1, 0):
        simulation = Simulation(children=children, reserved=reserved, spread=0.0)
        simulation.run({Priority.INTERACTIVE: 0.001, Priority.BULK: 10.0 * children}, 8000.0, 30.0)
        waits.append(simulation.longest_wait[Priority.INTERACTIVE])
    assert waits[0] == 0.0
    assert 0.0 < waits[1] <= DOCUMENT_SECONDS
