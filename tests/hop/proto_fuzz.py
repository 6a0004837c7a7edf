"""Messages of any protobuf type, made from its descriptor: every field, every edge of its type, and broken bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_NUMBERS: dict[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-3, 40),  # enums are open: numbers without a name arrive too
}
# What parsers, models and log lines stumble over, besides what Hypothesis thinks of itself.
_WORDS = (
    "", " ", "\x00", "\n", "a" * 3000, "../../etc/passwd", "{", '{"type": "object"}', "[" * 500, "%s%n", "${jndi:ldap://x}",
    "\u202e\ufeff\u0000", "\U0001f468\u200d\U0001f469" * 20, "user", "auto", "text/plain", "docling-hybrid", "\r\nx: y",
)  # fmt: skip
_DEPTH = 4


def messages(kind: Descriptor, depth: int = _DEPTH) -> st.SearchStrategy[Message]:
    """Messages of a type; every field is left out, or has any value that its type allows."""
    made: Callable[..., Message] = GetMessageClass(kind)
    fields = [field for field in kind.fields if depth or field.message_type is None]
    if not fields:
        return st.builds(made)
    one_of_each = {name: list(oneof.fields) for name, oneof in kind.oneofs_by_name.items()}
    return st.fixed_dictionaries({}, optional={field.name: _values(field, depth) for field in fields}).map(
        lambda values: made(**_without_rivals(values, one_of_each))
    )


def _without_rivals(values: dict[str, Any], oneofs: dict[str, list[FieldDescriptor]]) -> dict[str, Any]:
    for rivals in oneofs.values():
        present = [field.name for field in rivals if field.name in values]
        for name in present[1:]:
            del values[name]
    return values


def _values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        key, value = kind.fields_by_name["key"], kind.fields_by_name["value"]
        return st.dictionaries(_single(key, depth), _single(value, depth - 1), max_size=4)
    one = _single(field, depth)
    return st.lists(one, max_size=6) if field.is_repeated else one


def _single(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type, depth - 1)
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return st.floats(width=32)
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=64)
        case FieldDescriptor.CPPTYPE_STRING:
            return st.sampled_from(_WORDS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
        case kind:
            low, high = _NUMBERS[kind]
            return st.sampled_from([number for number in (0, 1, -1, low, high) if low <= number <= high]) | st.integers(
                low, high
            )


def broken(data: bytes, seed: int) -> bytes:
    """The bytes with one to four of them changed, cut out or doubled: most are near what a parser takes."""
    rng = random.Random(seed)
    bent = bytearray(data or b"\x0a\x01a")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(bent)) if bent else 0
        match rng.randrange(4):
            case 0 if bent:
                bent[at] ^= 1 << rng.randrange(8)
            case 1:
                del bent[at : at + rng.randint(1, 8)]
            case 2:
                bent[at:at] = bent[at : at + rng.randint(1, 64)]
            case _:
                bent[at:at] = rng.randbytes(rng.randint(1, 12))
    return bytes(bent)
