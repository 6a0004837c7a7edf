"""What requests took says what the next ones will take, and how sure that is."""

from __future__ import annotations

import pytest

from mesh.resilience import ServiceTime


def learned(*seconds: float) -> ServiceTime:
    """After requests that took so long."""
    time = ServiceTime(guess=100.0)
    for each in seconds:
        time.learn(each)
    return time


def test_the_first_request_replaces_the_guess() -> None:
    """A guess is for want of anything better."""
    assert ServiceTime(guess=100.0).mean == 100.0
    assert learned(2.0).mean == 2.0


def test_it_follows_a_change_of_load() -> None:
    """Old requests are forgotten."""
    assert learned(*[1.0] * 500, *[5.0] * 150).mean == pytest.approx(5.0, rel=0.05)


def test_the_more_is_known_the_less_is_added_for_safety() -> None:
    """After one request the next may be quite different; after hundreds alike it will not be."""
    assert learned(2.0).longest(3) > 9.0
    assert 6.0 < learned(*[2.0] * 1000).longest(3) < 7.0


def test_requests_that_differ_are_reckoned_with_their_spread() -> None:
    """With the same mean, those that differ more may take longer."""
    assert learned(*[1.0, 3.0] * 100).longest(4) > learned(*[1.9, 2.1] * 100).longest(4) + 2


def test_one_that_runs_for_long_is_expected_to_go_on() -> None:
    """Half done is half left; at twice the mean it is no typical one any more."""
    time = learned(*[2.0] * 100)
    assert time.left(1.0) == pytest.approx(0.5)
    assert time.left(6.0) == pytest.approx(2.0)


def test_what_was_broken_off_counts_only_where_it_took_longer() -> None:
    """A caller who left at once does not make answers quick; one who waited long shows that they are slow."""
    time = learned(*[2.0] * 100)
    time.learn_at_least(0.1)
    assert time.mean == pytest.approx(2.0)
    time.learn_at_least(20.0)
    assert time.mean > 2.0
