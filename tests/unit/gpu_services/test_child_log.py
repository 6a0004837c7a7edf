"""What the worker's log says of a child process that failed, and what it must not: a document's own words."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import pytest

from gpu_services.chunking.child_process import Child
from gpu_services.chunking.events import Limits, Order, Refused, encode_event
from mesh.errors import Internal, PayloadTooLarge
from mesh.tracebacks import without_words

WORDS = "canary words of a document"
ORDER = Order(
    document_path="-",
    media_type="",
    filename="a.txt",
    limits=Limits(max_pages=1, max_unpacked_bytes=1, max_seconds=9, max_memory_bytes=1),
)
# Stand-ins for a child: each takes its order, has a library complain, and ends in a way of its own.
COMPLAINS = f"import os, sys; sys.stdin.readline(); print({WORDS!r}, file=sys.stderr, flush=True); "


async def outcome(program: str) -> Refused:
    """What becomes of a document in a child that runs ``program``."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", COMPLAINS + program, stdin=pipe, stdout=pipe, stderr=pipe
    )
    child = Child(process)
    try:
        async with asyncio.timeout(30):
            event = [event async for event in child.events(ORDER, seconds=20)][-1]
    finally:
        await child.close()
    assert isinstance(event, Refused)
    assert WORDS in child._last_words()  # it was said, and heard
    return event


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The fields of all lines, which hold no word of the document."""
    assert all(WORDS not in f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    return [getattr(record, "fields", {}) for record in caplog.records]


@pytest.mark.parametrize(
    ("program", "code", "memory"),
    [
        ("os._exit(3)", 3, False),
        ("raise ValueError('canary words of a document')", 1, False),
        ("raise MemoryError('canary words of a document')", 1, True),
    ],
)
async def test_a_child_that_died_is_told_of_without_its_words(
    program: str, code: int, memory: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """How it ended is; what libraries said of the document on the way is not."""
    with caplog.at_level(logging.DEBUG, logger="gpu_services"):
        refused = await outcome(program)
    assert lines(caplog) == [{"exit_code": code, "said_out_of_memory": memory}]
    assert isinstance(refused.error, PayloadTooLarge if memory else Internal)


async def test_a_fault_of_ours_is_told_by_its_place(caplog: pytest.LogCaptureFixture) -> None:
    """A document that failed for a fault here leaves a traceback in the log, as its owner is told."""

    def fails() -> None:
        raise ValueError(WORDS)

    try:
        fails()
    except ValueError as error:
        frame = encode_event(Refused(Internal("A fault."), without_words(error)))
    said = len(frame).to_bytes(4, "big") + frame
    with caplog.at_level(logging.DEBUG, logger="gpu_services"):
        await outcome(f"os.write(1, {said!r}); sys.stdin.readline()")
    (line,) = lines(caplog)
    assert "in fails\n" in line["traceback"]
    assert line["traceback"].endswith("ValueError")
