"""The slope of a worker's memory, its picture, and the requests that it is measured with."""

from __future__ import annotations

import pytest

from bench.memory import Growth, Sample, in_many_sizes
from bench.texts import texts_of_all_lengths


def growth(*megabytes: float) -> Growth:
    """A sample every thousand texts."""
    return Growth(tuple(Sample(1000 * number, round(held * 1e6)) for number, held in enumerate(megabytes)))


def test_the_warm_up_does_not_count() -> None:
    """What the first texts take is no growth."""
    assert growth(100, 300, 490, 500, 500, 500, 500, 500, 500, 500, 500).bytes_per_text == pytest.approx(0)


def test_a_leak_is_told_per_ten_thousand_texts() -> None:
    """Two megabytes every thousand texts are twenty every ten thousand, and shrinking is negative."""
    assert growth(*(100 + 2 * number for number in range(11))).megabytes_per_10_000_texts == pytest.approx(20)
    assert growth(*(100 - number for number in range(11))).megabytes_per_10_000_texts == pytest.approx(-10)


def test_one_step_weighs_less_than_its_height() -> None:
    """The slope is fitted over all samples, so that the last one alone decides nothing."""
    flat = growth(*[100] * 10, 110)
    assert 0 < flat.megabytes_per_10_000_texts < 10 * (110 - 100)


def test_the_picture_shows_ends_and_warm_up() -> None:
    """Both ends of the scale are named, memory that grows rises to the right, and the warm-up's end is marked."""
    lines = growth(*(100 + 10 * number for number in range(11))).picture().splitlines()
    assert lines[1].startswith("  200 MB")
    assert lines[-2].startswith("  100 MB")
    assert lines[1].rindex("•") > lines[-2].rindex("•")
    assert all("┊" in line or "•" in line for line in lines[1:-1])
    assert lines[-1].endswith("10,000 texts")


def test_flat_memory_has_a_picture_too() -> None:
    """No division by the height of nothing."""
    assert growth(100, 100, 100, 100).picture().count("•") >= 4


def test_every_text_is_sent_once_in_requests_of_many_sizes() -> None:
    """The order stays, nothing is lost at the end, and the sizes differ."""
    requests = list(in_many_sizes(iter([str(number) for number in range(500)])))
    assert [text for request in requests for text in request] == [str(number) for number in range(500)]
    assert len({len(request) for request in requests}) >= 8


def test_texts_of_all_lengths_have_them() -> None:
    """From one word to more than a model with 512 tokens reads, the same in every run, short ones more often."""
    lengths = [len(text.split()) for text in texts_of_all_lengths(5000)]
    assert (min(lengths), max(lengths)) == (1, 400)
    assert len(set(lengths)) > 250
    assert sum(length <= 20 for length in lengths) > sum(length > 100 for length in lengths)
    assert list(texts_of_all_lengths(10)) == list(texts_of_all_lengths(20))[:10]
