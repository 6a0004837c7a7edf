"""Lines into requests."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.bulk.batching import Batch, BatchLimits, batches
from mesh.bulk.failures import BadLine
from mesh.bulk.reading import Fields, InputFormat, Place, Reader

LIMITS = BatchLimits(texts=4, tokens=300, bytes=100, text_tokens=90)
TEXT = Fields(format=InputFormat.TEXT)

# Some are blank, some longer than a request may be.
LINES = st.lists(st.sampled_from([0, 1, 5, 20, 60, 100, 101, 150]).map(lambda size: "x" * size), max_size=30)


def cut(lines: list[str], skipped: list[int] | None) -> list[Batch]:
    """The batches of a file of these lines; ``skipped`` takes the numbers of bad lines."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "in.txt"
        file.write_text("".join(f"{line}\n" for line in lines))
        with Reader(file, TEXT, Place()) as reader:
            skip = None if skipped is None else lambda bad: skipped.append(bad.line)
            return list(batches(reader, LIMITS, skip=skip))


@given(LINES)
def test_every_document_is_in_one_batch_in_order(lines: list[str]) -> None:
    """Whatever the lengths; only what is too long by itself is left out, and counted."""
    skipped: list[int] = []
    found = cut(lines, skipped)
    good = [number for number, line in enumerate(lines, 1) if 0 < len(line) <= 100]
    assert [document.line for batch in found for document in batch.documents] == good
    assert skipped == [number for number, line in enumerate(lines, 1) if len(line) > 100]
    assert sum(batch.skipped for batch in found) == len(skipped)
    assert [batch.number for batch in found] == list(range(len(found)))


@given(LINES)
def test_no_batch_is_over_the_limits(lines: list[str]) -> None:
    """In texts, in bytes, and in tokens as dense as they can be; a single text may have more tokens."""
    for batch in cut(lines, []):
        sizes = [document.size for document in batch.documents]
        assert len(sizes) <= LIMITS.texts
        assert sum(sizes) <= LIMITS.bytes
        assert len(sizes) <= 1 or sum(min(size + 64, 90) for size in sizes) <= LIMITS.tokens


@given(LINES)
def test_each_batch_ends_where_the_next_begins(lines: list[str]) -> None:
    """From a batch's place on, a reader finds the documents of those that follow."""
    found = cut(lines, [])
    for batch, following in itertools.pairwise(found):
        behind = sum(len(line) + 1 for line in lines[: batch.place.lines])
        assert batch.place.offset == behind
        assert all(document.line > batch.place.lines for document in following.documents)


def test_the_first_bad_line_ends_it_after_what_came_before() -> None:
    """So that nothing before it is lost, and it is the first line when the job goes on."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "in.txt"
        file.write_text("one\ntwo\n" + "x" * 101 + "\nfour\n")
        with Reader(file, TEXT, Place()) as reader:
            found = batches(reader, LIMITS, skip=None)
            batch = next(found)
            assert (batch.texts, batch.place.lines) == (["one", "two"], 2)
            with pytest.raises(BadLine) as bad:
                next(found)
    assert bad.value.line == 3


def test_the_workers_limits_bound_what_is_under_way() -> None:
    """All requests of all streams together take a quarter of its queue, even where every byte is a token."""
    limits = BatchLimits.of_worker(
        inputs=2048, request_tokens=300_000, request_bytes=2**24, queued_tokens=600_000, text_tokens=256
    )
    assert limits.tokens * 8 * 2 <= 600_000 / 4
    assert (limits.texts, limits.bytes, limits.text_tokens) == (256, 2**23, 256)


def test_a_worker_that_states_no_limits_is_given_usual_requests() -> None:
    """Zeros mean that nothing was stated, not that nothing is allowed."""
    limits = BatchLimits.of_worker(inputs=0, request_tokens=0, request_bytes=0, queued_tokens=0, text_tokens=0)
    assert min(limits.texts, limits.tokens, limits.bytes, limits.text_tokens) > 100
