"""What follows a request through the processes."""

from __future__ import annotations

import pytest

from mesh.context import CallContext, Priority, acceptable_request_id, acceptable_traceparent


def test_metadata_brings_back_the_same_context() -> None:
    """What one process writes, the next reads."""
    context = CallContext(
        request_id="r-1", priority=Priority.BULK, tenant="team", traceparent=f"00-{'a' * 32}-{'b' * 16}-01"
    )
    assert CallContext.from_metadata(context.to_metadata()) == context


def test_what_is_missing_is_made() -> None:
    """A call without metadata gets a fresh id and the interactive lane."""
    first, second = CallContext.from_metadata(()), CallContext.from_metadata(())
    assert first.request_id != second.request_id
    assert first.priority is Priority.INTERACTIVE


@pytest.mark.parametrize("bad", ["", None, "a b", "x" * 129, "line\nbreak", "é"])
def test_an_id_that_could_forge_a_log_line_is_not_taken(bad: str | None) -> None:
    """An id ends up in logs and headers, so its alphabet is small."""
    assert acceptable_request_id(bad) is None


def test_binary_metadata_is_no_identifier() -> None:
    """A peer may send bytes under our keys; they are passed over."""
    assert CallContext.from_metadata([("x-mesh-tenant", b"\x00")]).tenant == ""


@pytest.mark.parametrize("bad", ["00-ab-cd-01", "\u00e9", "", None, f"00-{'A' * 32}-{'b' * 16}-01"])
def test_a_bad_traceparent_is_ignored(bad: str | None) -> None:
    """The standard says so, and gRPC metadata takes no other characters."""
    assert acceptable_traceparent(bad) == ""
