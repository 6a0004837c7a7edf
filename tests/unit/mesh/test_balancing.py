"""The choice of an endpoint, and the following of names, without a network."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import pytest

from mesh.balancing import LINGER_SECONDS, Balancer
from mesh.channel import Option
from mesh.deadline import Deadline
from mesh.endpoint import NOT_SERVING, SERVING, UNREACHABLE, Endpoint
from mesh.errors import Internal, ModelUnusable, Overloaded, Unavailable
from mesh.resilience import CircuitBreaker
from mesh.testing import FakeClock
from mesh.transport import BlockingTransport, run_to_end


class QuietTransport(BlockingTransport):
    """Opens nothing and runs nothing beside; names lead where a test says."""

    def __init__(self, *names: tuple[str, ...]) -> None:
        super().__init__()
        self.answers = list(names)
        self.opened: list[tuple[str, dict[str, Any]]] = []
        self.closed: list[str] = []

    def open(self, target: str, options: Sequence[Option], credentials: object = None) -> Any:
        """The target stands for its channel."""
        self.opened.append((target, dict(options)))
        return target

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> Callable[[], Awaitable[None]]:
        """Never runs it."""

        async def end() -> None:
            """Nothing to end."""

        return end

    async def look_up(self, host: str, port: int) -> tuple[str, ...]:
        """The next answer; none is an error."""
        answer = self.answers.pop(0)
        if not answer:
            raise OSError(2, "no such name")
        return answer

    async def close_channel(self, channel: Any) -> None:
        """Note it."""
        self.closed.append(channel)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The time that endpoints and balancers see."""
    clock = FakeClock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


def balancer(*endpoints: str, transport: QuietTransport | None = None) -> Balancer:
    """A started one."""
    made = Balancer(
        hop="embedding",
        service="embedding.v1.EmbeddingService",
        endpoints=endpoints,
        transport=transport or QuietTransport(),
        options=(),
        new_breaker=lambda: CircuitBreaker(failure_threshold=2, timeout=60),
        on_serving=lambda: None,
    )
    made.start()
    return made


def all_serve(made: Balancer) -> tuple[Endpoint, ...]:
    """Its endpoints, all SERVING."""
    for endpoint in made.endpoints:
        endpoint.heard(SERVING)
    return made.endpoints


def chosen(made: Balancer, tried: Sequence[Endpoint] = ()) -> Endpoint:
    """Whom the next call goes to; it ends at once."""
    with made.attempt(tried) as attempt:
        return attempt.endpoint


def fail(made: Balancer, endpoint: Endpoint, times: int) -> None:
    """Calls that fail at one endpoint."""
    others = [each for each in made.endpoints if each is not endpoint]
    for _ in range(times):
        with pytest.raises(Internal), made.attempt(others):
            raise Internal("broken")


def test_equals_take_turns() -> None:
    """Three idle endpoints get every third call each."""
    made = balancer("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
    endpoints = all_serve(made)
    got = [chosen(made) for _ in range(9)]
    assert [got.count(each) for each in endpoints] == [3, 3, 3]


def test_the_one_with_fewest_calls_in_flight_is_chosen() -> None:
    """Whoever is slow has more of them."""
    made = balancer("127.0.0.1:1", "127.0.0.1:2")
    slow, quick = all_serve(made)
    slow.in_flight = 3
    assert {chosen(made) for _ in range(5)} == {quick}
    quick.in_flight = 4
    assert chosen(made) is slow
    assert (slow.in_flight, quick.in_flight) == (3, 4)


def test_one_that_does_not_serve_gets_nothing() -> None:
    """Nor does one that cannot be reached."""
    made = balancer("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
    one, two, three = all_serve(made)
    one.heard(NOT_SERVING, Unavailable("draining"))
    three.heard(UNREACHABLE, Unavailable("gone"))
    assert {chosen(made) for _ in range(10)} == {two}


def test_one_not_heard_of_is_used_only_while_none_serves() -> None:
    """At the start somebody has to be asked; afterwards the probe decides."""
    made = balancer("127.0.0.1:1", "127.0.0.1:2")
    one, two = made.endpoints
    assert {chosen(made) for _ in range(4)} == {one, two}
    one.heard(SERVING)
    assert {chosen(made) for _ in range(4)} == {one}


def test_failures_eject_it_and_serving_again_brings_it_back() -> None:
    """Ejected, it gets nothing until its breaker lets a probe through."""
    made = balancer("127.0.0.1:1", "127.0.0.1:2")
    bad, good = all_serve(made)
    fail(made, bad, 2)
    assert bad.status().ejected
    assert {chosen(made) for _ in range(5)} == {good}
    bad.heard(NOT_SERVING, Unavailable("restarting"))
    bad.heard(SERVING)
    assert bad in {chosen(made) for _ in range(3)}
    assert not bad.status().ejected


def test_when_all_are_ejected_calls_go_out_all_the_same() -> None:
    """Then the hop's own breaker judges, which sees every call."""
    made = balancer("127.0.0.1:1", "127.0.0.1:2")
    endpoints = all_serve(made)
    for endpoint in endpoints:
        fail(made, endpoint, 2)
    assert {chosen(made) for _ in range(4)} == set(endpoints)


def test_the_only_endpoint_is_never_ejected() -> None:
    """There is nowhere else to go."""
    made = balancer("127.0.0.1:1")
    (only,) = all_serve(made)
    fail(made, only, 20)
    assert not only.status().ejected
    assert chosen(made) is only


def test_a_busy_one_is_passed_over_for_as_long_as_it_said(clock: FakeClock) -> None:
    """But not for longer than a second, and not when all are busy."""
    made = balancer("127.0.0.1:1", "127.0.0.1:2")
    busy, free = all_serve(made)
    with pytest.raises(Overloaded), made.attempt([free]):
        raise Overloaded("full", retry_after=30.0)
    assert {chosen(made) for _ in range(4)} == {free}
    with pytest.raises(Overloaded), made.attempt([busy]):
        raise Overloaded("full", retry_after=30.0)
    assert {chosen(made) for _ in range(4)} == {busy, free}
    clock.advance(1.1)
    free.in_flight = 1
    assert chosen(made) is busy


def test_another_attempt_goes_elsewhere_or_nowhere() -> None:
    """Those that were tried are left out, and so are ejected ones when it is asked whether another is left."""
    made = balancer("127.0.0.1:1", "127.0.0.1:2")
    one, two = all_serve(made)
    assert chosen(made, [one]) is two
    assert made.has_another([one])
    fail(made, two, 2)
    assert not made.has_another([one])


def test_nobody_serving_is_told_with_the_workers_own_reason() -> None:
    """A typed reason beats 'cannot be reached'."""
    made = balancer("127.0.0.1:1", "127.0.0.1:2")
    one, two = made.endpoints
    one.heard(UNREACHABLE, Unavailable("gone"))
    two.heard(UNREACHABLE, Unavailable("gone"))
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        chosen(made)
    assert (caught.value.reason, caught.value.retry_after) == ("NO_ENDPOINT", 1.0)
    two.heard(NOT_SERVING, ModelUnusable("The file is truncated. Fetch it again.", reason="MODEL_DAMAGED"))
    with pytest.raises(ModelUnusable, match="truncated"):
        chosen(made)


def test_one_just_lost_is_tried_where_none_is_left(clock: FakeClock) -> None:
    """Perhaps only its connection was cut."""
    made = balancer("127.0.0.1:1")
    (only,) = all_serve(made)
    only.heard(UNREACHABLE, Unavailable("cut"))
    assert chosen(made) is only
    clock.advance(1.0)
    with pytest.raises(Unavailable):
        chosen(made)


def test_one_that_begins_to_drain_takes_calls_until_the_next_is_there(clock: FakeClock) -> None:
    """It says so before it refuses: for that moment it is better than nobody. One that is starting is not."""
    made = balancer("127.0.0.1:1", "127.0.0.1:2")
    old, new = made.endpoints
    old.heard(SERVING)
    new.heard(NOT_SERVING, Unavailable("starting"))
    old.heard(NOT_SERVING, Unavailable("draining"))
    assert {chosen(made) for _ in range(4)} == {old}
    new.heard(SERVING)
    assert {chosen(made) for _ in range(4)} == {new}
    new.heard(UNREACHABLE, Unavailable("gone"))
    clock.advance(1.1)
    with pytest.raises(Unavailable):
        chosen(made)


def test_calls_in_flight_are_counted_however_they_end() -> None:
    """Also when they are cancelled or fail."""
    made = balancer("127.0.0.1:1", "127.0.0.1:2")
    all_serve(made)
    for error in (KeyboardInterrupt(), Internal("x"), ValueError("x")):
        with pytest.raises(type(error)), made.attempt():
            raise error
    assert [each.in_flight for each in made.status()] == [0, 0]


def test_a_names_addresses_come_and_go(clock: FakeClock) -> None:
    """New ones at once; old ones when they stop serving, or after a while; connections close after the last call."""
    one, two, three = "ipv4:10.0.0.1:5", "ipv4:10.0.0.2:5", "ipv4:10.0.0.3:5"
    transport = QuietTransport((one, two), (two, three), (three,), (three,))
    made = balancer("worker:5", transport=transport)
    run_to_end(made._look_names_up())
    run_to_end(made.ready(Deadline.after(0)))
    assert transport.opened[0][1]["grpc.default_authority"] == "worker:5"
    first, second = all_serve(made)
    first.heard(UNREACHABLE, Unavailable("gone"))
    first.in_flight = 1
    run_to_end(made._look_names_up())
    assert [each.address for each in made.endpoints] == [two, three]
    run_to_end(made._close_what_left())
    assert transport.closed == []
    first.in_flight = 0
    run_to_end(made._close_what_left())
    assert transport.closed == [one]
    all_serve(made)
    clock.advance(LINGER_SECONDS - 1)
    run_to_end(made._look_names_up())
    assert second in made.endpoints
    clock.advance(10)
    run_to_end(made._look_names_up())
    assert [each.address for each in made.endpoints] == [three]


def test_a_look_up_that_fails_takes_nothing_away() -> None:
    """A resolver that is down must not take the hop with it."""
    transport = QuietTransport((), ("ipv4:10.0.0.1:5",), ())
    made = balancer("worker:5", transport=transport)
    run_to_end(made._look_names_up())
    assert [(each.endpoint, each.health, each.reason_code) for each in made.status()] == [
        ("worker:5", UNREACHABLE, "NAME_NOT_FOUND")
    ]
    run_to_end(made._look_names_up())
    run_to_end(made._look_names_up())
    assert [each.endpoint for each in made.status()] == ["worker:5"]
    assert len(made.endpoints) == 1
