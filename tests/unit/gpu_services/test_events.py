"""What crosses the border between worker and child."""

from __future__ import annotations

import pytest

from gpu_services.chunking.events import (
    ChildSetup,
    Event,
    Finished,
    Limits,
    Order,
    Progress,
    Ready,
    Refused,
    decode_event,
    decode_order,
    decode_setup,
    encode_event,
    encode_order,
)
from mesh.docling.chunks import Box, Chunk
from mesh.errors import Forbidden, Internal, PayloadTooLarge

EVENTS: list[Event] = [
    Chunk(
        index=1,
        text="t ü \ud800",
        headings=("a", "b"),
        pages=(1, 2),
        tokens=3,
        boxes=(Box(1, 0.5, 1, 2, 3),),
        contextualized_text="a\nb\nt",
    ),
    Progress(3, 10),
    Finished(media_type="text/plain", pages=1, title="T", warnings=("w",), chunks=2, tokens=3, characters=4),
    Ready("2.1", ("memory",), ("no filter",), 100, "native"),
]


@pytest.mark.parametrize("event", EVENTS[1:], ids=lambda event: type(event).__name__)
def test_an_event_survives_the_border(event: Event) -> None:
    """What is read is what was written."""
    assert decode_event(encode_event(event)) == event


def test_text_that_is_no_text_is_made_one_at_the_border() -> None:
    """Broken PDFs give halves of characters, which no message can carry: they become question marks."""
    decoded = decode_event(encode_event(EVENTS[0]))
    assert isinstance(decoded, Chunk)
    assert decoded.text == "t ü ?"
    assert decoded.boxes == (Box(1, 0.5, 1, 2, 3),)


def test_a_refusal_keeps_its_class_reason_and_words() -> None:
    """The document's owner reads what the child found."""
    decoded = decode_event(encode_event(Refused(PayloadTooLarge("too long", reason="DOCUMENT_TIMEOUT"))))
    assert isinstance(decoded, Refused)
    assert type(decoded.error) is PayloadTooLarge
    assert (decoded.error.message, decoded.error.reason) == ("too long", "DOCUMENT_TIMEOUT")


def test_a_child_cannot_make_the_worker_raise_any_class_it_likes() -> None:
    """Only refusals about documents come out of a child; anything else is an internal failure."""
    decoded = decode_event(encode_event(Refused(Forbidden("no"))))
    assert isinstance(decoded, Refused)
    assert type(decoded.error) is Internal


@pytest.mark.parametrize("frame", [b"", b"[]", b"{}", b'{"kind":"eval"}', b'{"kind":"progress","x":1}', b"\xff"])
def test_nonsense_is_a_value_error(frame: bytes) -> None:
    """A child that was taken over cannot raise anything else in the worker."""
    with pytest.raises(ValueError, match=r".+"):
        decode_event(frame)


def test_orders_and_setups_survive_the_border(limits: Limits) -> None:
    """Each is one line."""
    order = Order(document_path="/a\nb", media_type="", filename="a.pdf", limits=limits)
    setup = ChildSetup(
        pdf_pipeline="native", artifacts_path="", tokenizer_path="t", max_memory_bytes=1, max_output_bytes=2
    )
    assert encode_order(order).count(b"\n") == encode_order(setup).count(b"\n") == 1
    assert decode_order(encode_order(order)) == order
    assert decode_setup(encode_order(setup)) == setup
