"""Server-sent events arrive whole, wherever the bytes are cut."""

from __future__ import annotations

import pytest

from llm_service.sse import MAX_EVENT_BYTES, EventParser, EventTooLong

STREAM = (
    ": a comment\n\n"
    'data: {"text": "Grüße, 世界 🌍"}\n\n'
    "event: ping\r\ndata: one\r\ndata: two\r\n\r\n"
    "data:no space\rid: 7\r\r"
    "data\n\n"
    "data: [DONE]\n\n"
).encode()
EVENTS = ['{"text": "Grüße, 世界 🌍"}', "one\ntwo", "no space", "", "[DONE]"]


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_a_cut_at_any_byte_changes_nothing(cut: int) -> None:
    """Two chunks give the same events as one, at every cut."""
    parser = EventParser()
    assert parser.feed(STREAM[:cut]) + parser.feed(STREAM[cut:]) == EVENTS


def test_byte_by_byte() -> None:
    """Chunks of one byte each give the same events."""
    parser = EventParser()
    assert [event for byte in STREAM for event in parser.feed(bytes([byte]))] == EVENTS


def test_an_event_without_its_end_is_dropped() -> None:
    """What a broken stream cut off never counts as an event."""
    assert EventParser().feed(b"data: whole\n\ndata: half\n") == ["whole"]


def feed_often(parser: EventParser, chunk: bytes, times: int) -> None:
    """The same bytes again and again."""
    for _ in range(times):
        parser.feed(chunk)


@pytest.mark.parametrize("chunk", [b"data: " + b"x" * 65_536 + b"\n", b"x" * 65_536], ids=["many lines", "one line"])
def test_an_endless_event_is_refused(chunk: bytes) -> None:
    """A peer that never ends its event cannot fill the memory."""
    parser = EventParser()
    with pytest.raises(EventTooLong):
        feed_often(parser, chunk, 2 * MAX_EVENT_BYTES // len(chunk))
