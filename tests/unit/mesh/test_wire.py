"""MeshError ↔ gRPC status, without a network."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from mesh.errors import (
    AttemptTimedOut,
    DeadlineExceeded,
    MeshError,
    Overloaded,
    PayloadTooLarge,
    Unavailable,
    all_error_classes,
)
from mesh.wire import DETAILS_KEY, PUSHBACK_KEY, from_rpc_error, grpc_code, to_trailing_metadata


class Failed(grpc.RpcError):
    """A failed call as either stack presents it."""

    def __init__(self, code: grpc.StatusCode, details: str = "", trailing: Any = ()) -> None:
        super().__init__(details)
        self._parts = code, details, trailing

    def code(self) -> grpc.StatusCode:
        """The status."""
        return self._parts[0]

    def details(self) -> str:
        """The core's text."""
        return self._parts[1]

    def trailing_metadata(self) -> Any:
        """The trailing metadata."""
        return self._parts[2]


@pytest.mark.parametrize("cls", all_error_classes())
@pytest.mark.parametrize("retry_after", [None, 0.25, 90.0])
def test_every_class_survives_the_round_trip(cls: type[MeshError], retry_after: float | None) -> None:
    """Class, text, reason, field and delay come back as they went."""
    sent = cls("what to do", reason="A_REASON", param="input", retry_after=retry_after)
    failed = Failed(grpc_code(sent), sent.message, to_trailing_metadata(sent))
    got = from_rpc_error(failed, hop="embedding", caller_time_is_up=False)
    assert (type(got), got.message, got.reason, got.param, got.retry_after) == (
        cls, "what to do", "A_REASON", "input", retry_after,
    )  # fmt: skip


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_bare_status_maps(code: grpc.StatusCode) -> None:
    """A status from the core, a proxy or a stranger becomes a class with a text of ours."""
    got = from_rpc_error(
        Failed(code, "ipv4:10.0.0.1:50051: secret internals"), hop="embedding", caller_time_is_up=False
    )
    assert type(got) in all_error_classes()
    assert "10.0.0.1" not in got.message
    assert got.hop == "embedding"


def test_an_expired_caller_is_told_from_a_slow_peer() -> None:
    """One status, two meanings: whose time was up decides."""
    failed = Failed(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
    assert type(from_rpc_error(failed, hop="x", caller_time_is_up=True)) is DeadlineExceeded
    assert type(from_rpc_error(failed, hop="x", caller_time_is_up=False)) is AttemptTimedOut


def test_a_dropped_call_that_we_did_not_cancel_is_unavailable() -> None:
    """A server that goes down cancels its calls."""
    got = from_rpc_error(Failed(grpc.StatusCode.CANCELLED), hop="x", caller_time_is_up=False)
    assert type(got) is Unavailable


def test_an_oversized_message_is_told_from_a_busy_peer() -> None:
    """The core uses one status for both."""
    big = Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max (5 vs. 4)")
    assert type(from_rpc_error(big, hop="x", caller_time_is_up=False)) is PayloadTooLarge
    busy = Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many")
    assert type(from_rpc_error(busy, hop="x", caller_time_is_up=False)) is Overloaded


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"", b"\x08\x03"])
def test_details_that_are_not_ours_are_passed_over(garbage: bytes) -> None:
    """A peer may put anything under the key; the status still tells."""
    failed = Failed(grpc.StatusCode.UNAVAILABLE, "x", ((DETAILS_KEY, garbage),))
    assert type(from_rpc_error(failed, hop="x", caller_time_is_up=False)) is Unavailable


@pytest.mark.parametrize("cls", all_error_classes())
def test_what_must_not_be_sent_again_tells_the_core_so(cls: type[MeshError]) -> None:
    """Server pushback keeps gRPC's own retry policy from trying in vain."""
    pushed = dict(to_trailing_metadata(cls("x"))).get(PUSHBACK_KEY)
    assert (pushed == "-1") is (cls.retry.value == "never")
