"""Counting a message's fields without parsing it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.pb.embedding.v1 import embedding_pb2 as pb
from mesh.serving.parsing import MOST_FIELDS, UNREAD, bounded, has_more_fields


@given(st.lists(st.text(max_size=300), max_size=20), st.booleans(), st.integers(1, 25))
def test_fields_are_counted_as_the_parser_would(texts: list[str], normalize: bool, limit: int) -> None:
    """Repeated ones each by itself, whatever their lengths and kinds."""
    message = pb.EmbedRequest(model="m", texts=texts, normalize=normalize, dimensions=7)
    data = message.SerializeToString()
    fields = 3 + len(texts)
    assert has_more_fields(data, limit) == (fields > limit and len(data) >= 2 * limit)


@given(st.binary(max_size=200), st.integers(1, 50))
def test_what_is_no_message_is_left_to_the_parser(data: bytes, limit: int) -> None:
    """Any bytes are counted, or said to be few: nothing is raised here."""
    assert has_more_fields(data, limit) in (True, False)


@pytest.mark.parametrize(("texts", "unread"), [(MOST_FIELDS, False), (MOST_FIELDS + 1, True)])
def test_a_message_of_too_many_fields_is_not_parsed(texts: int, unread: bool) -> None:
    """What any limit allows is read; beyond it a marker takes the message's place."""
    parse = bounded(pb.EmbedRequest.FromString)
    assert parse is not None
    found = parse(pb.EmbedRequest(texts=[""] * texts).SerializeToString())
    assert (found is UNREAD) == unread


def test_a_length_without_end_is_no_message_and_costs_no_time() -> None:
    """A number of half a million bytes would take minutes to compute, on the event loop."""
    started = time.process_time()
    assert not has_more_fields(b"\x0a" + b"\xff" * 500_000 + b"\x01", 100_000)
    assert time.process_time() - started < 1.0


def test_a_group_before_them_hides_no_fields() -> None:
    """Its begin and end are tags like others."""
    assert has_more_fields(b"\x7b\x7c" + b"\x0a\x00" * 300_000, 100_000)
