"""Log lines that people and machines can read."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from mesh.context import CallContext, current_call
from mesh.telemetry import configure_logging, fields, get_logger


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Configuring logging is for the process; give it back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def test_a_json_line_has_its_fields_and_the_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    """One object a line."""
    configure_logging("worker", "json")
    token = current_call.set(CallContext(request_id="r-1"))
    get_logger("x").info("call", extra=fields(ms=1.5))
    current_call.reset(token)
    line = json.loads(capsys.readouterr().err)
    assert {key: line[key] for key in ("message", "ms", "request_id", "process", "level")} == {
        "message": "call", "ms": 1.5, "request_id": "r-1", "process": "worker", "level": "info",
    }  # fmt: skip


def test_a_text_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Message first, fields after it."""
    configure_logging("worker")
    get_logger("x").warning("breaker moved", extra=fields(hop="embedding", after="open"))
    assert capsys.readouterr().err.rstrip().endswith("WARNING worker: breaker moved hop=embedding after=open")


def test_a_value_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A client's path may hold a line break; the log shows it as one."""
    configure_logging("gateway")
    get_logger("x").info("request", extra=fields(path="/x\n12:00:00.000 ERROR forged"))
    assert len(capsys.readouterr().err.splitlines()) == 1
