"""The texts that are measured with."""

from __future__ import annotations

import hashlib

import pytest

from bench.rerank import ordered_alike
from bench.texts import Length, random_rankings, random_texts


def test_texts_are_the_same_everywhere() -> None:
    """Figures of two machines or two years are about the same texts."""
    digest = hashlib.sha256("\n".join(random_texts(100, Length.SHORT)).encode()).hexdigest()
    assert digest == "7378e70898c869dcf113d37038a8217113545002fbb3273789b582479268c3c6"
    assert random_rankings(2, 4) == random_rankings(2, 4)


@pytest.mark.parametrize("length", list(Length))
def test_texts_have_the_length_they_are_named_for(length: Length) -> None:
    """Every text stays within its bounds, and the lengths differ."""
    counts = {len(text.split()) for text in random_texts(300, length)}
    fewest, most = length.value
    assert fewest <= min(counts) < max(counts) <= most


def test_texts_differ_from_each_other_and_by_seed() -> None:
    """Nothing that remembers an answer can shine."""
    texts = random_texts(500, Length.SHORT)
    assert len(set(texts)) == 500
    assert not set(texts) & set(random_texts(500, Length.SHORT, seed=1))


def test_a_longer_list_begins_with_the_shorter_one() -> None:
    """A quick run measures with a part of the same texts."""
    assert random_texts(64, Length.LONG)[:8] == random_texts(8, Length.LONG)


def test_order_ignores_near_ties_and_sees_the_rest() -> None:
    """Documents that score alike may change places; others may not."""
    reference = [0.9, 0.5, 0.4999]
    assert ordered_alike([3.0, 1.0, 2.0], reference) == 1.0
    assert ordered_alike([1.0, 3.0, 2.0], reference) == 0.0
    assert ordered_alike([2.0, 3.0, 1.0], reference) == 0.5
    assert ordered_alike([1.0, 2.0], [0.5, 0.5]) == 1.0
