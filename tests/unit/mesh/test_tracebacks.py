"""What a log may say of an exception whose words may be a client's."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
from collections.abc import Callable, Iterator

import pytest

from mesh.context import CallContext, current_call
from mesh.errors import InvalidRequest
from mesh.telemetry import configure_logging, get_logger, quoting
from mesh.tracebacks import without_words

SECRET = "canary-prompt-77"


@pytest.fixture(params=["json", "text"])
def log_as(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Begins to log in either form. It is called in the test, whose standard error is another one than a fixture's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: configure_logging("worker", request.param)
    root.handlers[:], root.level = handlers, level


def parse(text: str) -> None:
    """Fail as libraries do: with what they were given in the message, and something else on the way out."""
    try:
        json.loads(text)
    except ValueError as error:
        raise RuntimeError(f"cannot read {text!r}") from error


def failed() -> RuntimeError:
    """What `parse` raises for the secret."""
    try:
        parse(SECRET)
    except RuntimeError as error:
        return error
    raise AssertionError


def test_kinds_and_places_are_told_and_no_words() -> None:
    """Each exception of the chain with its frames, the first cause first."""
    told = without_words(failed())
    assert SECRET not in told
    assert told.index("json.decoder.JSONDecodeError") < told.index("RuntimeError")
    assert "in parse" in told
    assert "direct cause" in told


def test_what_the_system_says_of_its_own_errors_stays() -> None:
    """That the disk is full is nobody's secret; the file's name may be. Of our own errors the reason stays."""
    full = OSError(errno.ENOSPC, "whatever", f"/spool/{SECRET}")
    assert without_words(full) == "OSError: [Errno 28] No space left on device"
    assert without_words(InvalidRequest(SECRET, reason="BAD")) == "mesh.errors.InvalidRequest: BAD"


def test_exceptions_in_groups_and_circles_come_to_an_end() -> None:
    """A group tells of each inside it, and a chain that leads back to itself is cut."""
    first, second = ValueError(SECRET), TypeError(SECRET)
    first.__cause__, second.__cause__ = second, first
    told = without_words(ExceptionGroup(SECRET, [first]))
    assert SECRET not in told
    assert "ValueError" in told
    assert "ExceptionGroup" in told


def test_while_a_request_is_served_a_traceback_has_no_words(
    log_as: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The request's id leads to the client; the log does not repeat what it sent."""
    log_as()
    token = current_call.set(CallContext(request_id="r-1"))
    get_logger("x").error("a call failed", exc_info=failed())
    current_call.reset(token)
    said = capsys.readouterr().err
    assert SECRET not in said
    assert "in parse" in said.replace("\\n", "\n")
    assert "r-1" in said


def test_a_line_that_is_marked_has_no_words_either(
    log_as: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """An engine's thread serves many requests, and none of them is current there."""
    log_as()
    get_logger("x").error("a batch failed", exc_info=failed(), extra=quoting(items=3))
    said = capsys.readouterr().err
    assert SECRET not in said
    assert "RuntimeError" in said


def test_outside_of_requests_the_words_are_there(
    log_as: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Why a model does not load is for the operator to read."""
    log_as()
    get_logger("x").error("a capability did not start", exc_info=failed())
    assert SECRET in capsys.readouterr().err


def test_what_asyncio_says_of_a_lost_task_has_no_words(
    log_as: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its message would carry the exception's words as well as the traceback does."""
    log_as()

    async def lose_a_task() -> None:
        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        assert task.done()
        del task
        gc.collect()

    async def fail() -> None:
        parse(SECRET)

    asyncio.run(lose_a_task())
    said = capsys.readouterr().err
    assert "never retrieved" in said
    assert SECRET not in said


class Told(Exception):
    """Keeps what it was made of under a name that groups of exceptions have too."""

    exceptions = (SECRET, 7)


def test_what_is_called_exceptions_need_hold_none() -> None:
    """A line that cannot be written would be replaced by logging's own traceback, words and all."""
    assert without_words(Told(SECRET)) == f"{__name__}.Told"
