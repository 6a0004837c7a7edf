"""What a hop remembers of its calls' times."""

from __future__ import annotations

from mesh.hop_status import LATENCY_SAMPLES, Latencies


def test_times_since_a_mark_are_told_once() -> None:
    """Each reader goes on where it left off, and sees nothing twice."""
    latencies = Latencies()
    for seconds in (0.1, 0.2):
        latencies.took(seconds)
    mark, times = latencies.since(0)
    assert (mark, list(times)) == (2, [0.1, 0.2])
    assert latencies.since(mark) == (2, [])
    latencies.took(0.3)
    assert latencies.since(mark) == (3, [0.3])


def test_of_many_times_the_latest_are_kept() -> None:
    """A busy second tells its latest calls, and counts them all."""
    latencies = Latencies()
    for number in range(LATENCY_SAMPLES + 10):
        latencies.took(float(number))
    mark, times = latencies.since(0)
    assert (mark, len(times), times[0]) == (LATENCY_SAMPLES + 10, LATENCY_SAMPLES, 10.0)
