"""What the load generator reads of an answer, when its requests are due, and the arithmetic on its records."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from tests.chaos.openloop import Connection, Request, arrivals
from tests.chaos.openloop_record import GAVE_UP, LOST, UNSENT, Answer, Phase, Plan, Record, Span, percentile

REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After-Ms: 120\r\nRetry-After: 1\r\ncontent-length: 5\r\n\r\nlater"


class FakePool:
    """Notes what a connection tells it."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def free(self, connection: Connection) -> None:
        """The connection has no request."""
        self.told.append(("free",))

    def answered(self, request: Request, status: int, retry_after_ms: float) -> None:
        """A whole answer came."""
        self.told.append(("answered", status, retry_after_ms))

    def closed(self, connection: Connection, request: Request | None, *, answered_in_part: bool) -> None:
        """The connection is gone."""
        self.told.append(("closed", request is not None, answered_in_part))


class FakeTransport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written += data

    def abort(self) -> None:
        """Remember it."""
        self.aborted = True


def sending() -> tuple[Connection, FakePool, FakeTransport]:
    """A connection with a request under way."""
    pool, transport = FakePool(), FakeTransport()
    connection = Connection(pool)  # type: ignore[arg-type]  # a fake of the three methods that it calls
    connection.connection_made(transport)  # type: ignore[arg-type]  # a fake of the two methods that it calls
    connection.send(Request(phase=0, due=0.0, body=b"POST", lane=False))
    pool.told.clear()
    return connection, pool, transport


@pytest.mark.parametrize("size", [1, 7, len(REFUSAL)])
def test_an_answer_may_come_in_any_pieces(size: int) -> None:
    """Status, length and advice are read alike however the bytes are cut, and the connection is free again."""
    connection, pool, _ = sending()
    for start in range(0, len(REFUSAL), size):
        connection.data_received(REFUSAL[start : start + size])
    assert pool.told == [("answered", 429, 120.0), ("free",)]


def test_a_connection_that_the_server_will_close_takes_no_further_request() -> None:
    """``connection: close`` ends it after its answer."""
    connection, pool, transport = sending()
    connection.data_received(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
    assert pool.told == [("answered", 200, 0.0)]
    assert transport.aborted


@pytest.mark.parametrize(("came", "in_part"), [(b"", False), (b"HTTP/1.1 200", True)])
def test_a_broken_connection_tells_whether_anything_was_answered(came: bytes, in_part: bool) -> None:
    """Only a request of which the server has shown no sign may be sent again."""
    connection, pool, _ = sending()
    if came:
        connection.data_received(came)
    connection.connection_lost(None)
    assert pool.told == [("closed", True, in_part)]


def test_arrivals_are_random_at_their_rate_and_the_same_every_time() -> None:
    """A Poisson process: the seed fixes it, its mean is the rate, its pauses vary as much as their mean."""
    phase = Phase(name="load", seconds=100, rate=50)
    due = list(arrivals(phase, "seed"))
    assert due == list(arrivals(phase, "seed")) != list(arrivals(phase, "other"))
    assert due == sorted(due)
    assert due[-1] < 100
    assert len(due) == pytest.approx(5000, rel=0.05)
    pauses = [later - earlier for earlier, later in itertools.pairwise(due)]
    mean = sum(pauses) / len(pauses)
    deviation = math.sqrt(sum((pause - mean) ** 2 for pause in pauses) / len(pauses))
    assert deviation == pytest.approx(mean, rel=0.1)


def test_even_arrivals_are_evenly_spaced() -> None:
    """One every 1/rate seconds."""
    assert list(arrivals(Phase(name="load", seconds=1, rate=4, even=True), "")) == [0.0, 0.25, 0.5, 0.75]


def record() -> Record:
    """Two seconds of load, then one; a request every half second, with a deadline of 0.4 s in mind."""
    return Record(
        spans=(Span("over", 0.0, 2.0), Span("after", 2.0, 3.0)),
        answers=(
            Answer(0, 0.0, 0.1, 200),
            Answer(0, 0.5, 0.01, 429, 120.0),
            Answer(0, 1.0, 0.5, 200),
            Answer(0, 1.5, 3.0, GAVE_UP),
            Answer(0, 1.9, 0.3, 200),
            Answer(1, 2.1, 0.1, 503, 50.0),
            Answer(1, 2.5, 0.1, 200),
            Answer(1, 2.9, 0.2, 200),
        ),
        began=100.0,
        cpu_seconds=0.004,
    )


def test_goodput_counts_what_was_in_time_when_it_ended() -> None:
    """A late answer is no good, and a good one counts in the phase in which it ended."""
    over, after = record().part("over", within=0.4), record().part("after", within=0.4)
    assert over.goodput == 0.5  # one of the three ended in it, in time
    assert after.goodput == 2.0  # the one from before, and its own first; its own second ended behind it
    assert over.goodput_slices(0.5) == [2.0, 0.0, 0.0, 0.0]


def test_outcomes_are_told_apart() -> None:
    """Served, refused and the rest add up to what became due."""
    over = record().part("over", within=0.4)
    assert over.outcomes == {"200": 3, "gave up": 1, "429": 1}
    assert over.offered == 2.5
    assert over.accepted == [0.1, 0.5, 0.3]
    assert [answer.retry_after_ms for answer in over.refused] == [120.0]
    assert over.others == {"gave up": 1}


def test_settled_after_is_the_last_request_that_was_not_served_in_time() -> None:
    """Recovery is over with the last failure, not with the first success."""
    after = record().part("after", within=0.4)
    assert after.settled_after == pytest.approx(0.1)
    assert after.share_good_after(0.2) == 1.0
    assert after.share_good_after(0.0) == pytest.approx(2 / 3)
    assert math.isnan(after.share_good_after(1.0))
    assert Record.from_json(record().to_json()).part("after", within=0.15).settled_after == pytest.approx(0.9)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 5), (0.99, 10), (1.0, 10)])
def test_percentiles_are_values_that_occurred(share: float, expected: float) -> None:
    """Nearest rank: no figure is made up between two measured ones, and nothing has none."""
    assert percentile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], share) == expected
    assert math.isnan(percentile([], share))


def test_plans_and_records_survive_the_way_between_processes() -> None:
    """What is read on the other side equals what was written, bytes included."""
    plan = Plan(
        url="http://127.0.0.1:61001",
        requests=(b"GET / HTTP/1.1\r\n\r\n", bytes(range(256))),
        phases=(Phase(name="load", seconds=1.5, rate=10.0), Phase(name="peak", seconds=1, concurrency=4, most=9)),
        give_up_seconds=2.0,
    )
    assert Plan.from_json(plan.to_json()) == plan
    assert (plan.host, plan.port) == ("127.0.0.1", 61001)
    assert Record.from_json(record().to_json()) == record()
    assert {UNSENT, LOST, GAVE_UP}.isdisjoint(range(600))
