"""Every error class in every dialect."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.dialects import Dialect, dialect_of
from gateway.problems import as_mesh_error, problem, trace_id
from mesh.context import CallContext
from mesh.errors import (
    CircuitOpen,
    GpuOutOfMemory,
    InvalidBody,
    InvalidRequest,
    MeshError,
    ModelUnusable,
    Overloaded,
    RetryAdvice,
    Unavailable,
    all_error_classes,
)

CALL = CallContext(request_id="r" * 32)
PATHS = {
    Dialect.OPENAI: "/v1/embeddings",
    Dialect.COHERE: "/v2/rerank",
    Dialect.JINA: "/v1/rerank",
    Dialect.TEI: "/embed",
    Dialect.ANTHROPIC: "/v1/messages",
    Dialect.OURS: "/v1/chunk",
}
TEI_TYPES = {"Overloaded", "Validation", "Tokenizer", "Empty", "Backend", "Unhealthy"}


def keys_of(dialect: Dialect, document: dict[str, Any]) -> set[str]:
    """The keys of the document that a client of the dialect reads."""
    return set(document["error"]) if dialect in {Dialect.OPENAI, Dialect.ANTHROPIC} else set(document)


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("error_class", all_error_classes())
def test_every_class_has_a_row_in_every_dialect(error_class: type[MeshError], dialect: Dialect) -> None:
    """No failure leaves the gateway in a shape that its client cannot read."""
    error = error_class("Say what to do next.", param="input", hop="embedding", retry_after=2.5)
    shown = problem(error, dialect=dialect, call=CALL, path=PATHS[dialect])
    headers = dict(shown.headers)
    expected_keys = {
        Dialect.OPENAI: {"message", "type", "param", "code"},
        Dialect.COHERE: {"message", "id"},
        Dialect.JINA: {"detail", "message", "id"},
        Dialect.TEI: {"error", "error_type"},
        Dialect.ANTHROPIC: {"type", "message"},
    }
    if dialect is Dialect.OURS:
        assert {"type", "title", "status", "detail", "code", "hop", "retry_after", "trace_id", "request_id"} <= set(
            shown.document
        )
        assert headers["content-type"] == "application/problem+json"
        assert shown.document["status"] == shown.status
    else:
        assert keys_of(dialect, shown.document) == expected_keys[dialect]
        assert headers["content-type"] == "application/json"
    if dialect is Dialect.TEI:
        assert shown.document["error_type"] in TEI_TYPES
    assert 400 <= shown.status < 600
    assert b"Say what to do next." in shown.body
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("3", "2500")
    assert headers["x-should-retry"] == ("false" if error.retry is RetryAdvice.NEVER else "true")


@pytest.mark.parametrize("error_class", all_error_classes())
def test_a_status_is_the_classes_own_outside_the_vendors_exceptions(error_class: type[MeshError]) -> None:
    """Our own dialect and Cohere's take the error table as it stands."""
    error = error_class("No.")
    for dialect in (Dialect.OURS, Dialect.COHERE, Dialect.JINA):
        assert problem(error, dialect=dialect, call=CALL, path="/").status == error_class.http_status


def test_openai_says_400_to_a_body_that_does_not_validate() -> None:
    """OpenAI's own API has no 422 for it."""
    assert problem(InvalidBody("No."), dialect=Dialect.OPENAI, call=CALL, path="/v1/embeddings").status == 400


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("No."), 422, "Validation"),
        (InvalidRequest("No.", reason="EMPTY_INPUT"), 400, "Empty"),
        (Overloaded("No."), 429, "Overloaded"),
        (GpuOutOfMemory("No."), 424, "Backend"),
        (Unavailable("No."), 503, "Unhealthy"),
        (as_mesh_error(ValueError()), 424, "Backend"),
    ],
)
def test_tei_has_statuses_and_types_of_its_own(error: MeshError, status: int, kind: str) -> None:
    """TEI's clients decide by these."""
    shown = problem(error, dialect=Dialect.TEI, call=CALL, path="/embed")
    assert (shown.status, shown.document["error_type"]) == (status, kind)


def test_text_of_an_unknown_exception_never_leaves() -> None:
    """It may hold a path, a prompt or a password."""
    error = as_mesh_error(RuntimeError("password=hunter2"))
    for dialect in Dialect:
        assert b"hunter2" not in problem(error, dialect=dialect, call=CALL, path="/").body


@pytest.mark.parametrize("dialect", Dialect)
def test_busy_and_away_always_say_when_to_come_back(dialect: Dialect) -> None:
    """A 429 or a 503 without Retry-After makes every client guess."""
    for error in (Overloaded("No."), Unavailable("No.")):
        assert dict(problem(error, dialect=dialect, call=CALL, path="/").headers)["retry-after"] == "1"


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("error_class", [Overloaded, Unavailable, CircuitOpen])
@pytest.mark.parametrize(
    ("seconds", "whole", "exact"),
    [
        (0.0, "1", "1"),
        (0.0004, "1", "1"),
        (0.25, "1", "250"),
        (1.0, "1", "1000"),
        (1.001, "2", "1001"),
        (60, "60", "60000"),
    ],
)
def test_when_to_come_back_is_the_errors_own_time(
    dialect: Dialect, error_class: type[MeshError], seconds: float, whole: str, exact: str
) -> None:
    """Whole seconds rounded up for those who know nothing finer, and the exact time for those who do."""
    error = error_class("No.", retry_after=seconds)
    headers = dict(problem(error, dialect=dialect, call=CALL, path=PATHS[dialect]).headers)
    assert (headers["retry-after"], headers["retry-after-ms"]) == (whole, exact)


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("error", [ModelUnusable("No."), GpuOutOfMemory("No.")])
def test_what_waiting_does_not_mend_names_no_time(dialect: Dialect, error: MeshError) -> None:
    """A client that came back would meet the same."""
    headers = dict(problem(error, dialect=dialect, call=CALL, path=PATHS[dialect]).headers)
    assert "retry-after" not in headers
    assert headers["x-should-retry"] == "false"


def test_generation_is_retried_only_where_the_worker_said_when() -> None:
    """A text is not written twice because a connection broke."""
    path = "/v1/chat/completions"
    blind = problem(Unavailable("No."), dialect=Dialect.OPENAI, call=CALL, path=path)
    told = problem(Unavailable("No.", retry_after=2), dialect=Dialect.OPENAI, call=CALL, path=path)
    open_circuit = problem(CircuitOpen("No.", retry_after=2), dialect=Dialect.OPENAI, call=CALL, path=path)
    assert [dict(shown.headers)["x-should-retry"] for shown in (blind, told, open_circuit)] == [
        "false",
        "true",
        "false",
    ]


def test_the_trace_id_is_the_callers_where_one_was_sent() -> None:
    """Logs, traces and problems share one id."""
    traced = CallContext(request_id="abc", traceparent=f"00-{'4' * 32}-{'1' * 16}-01")
    assert (trace_id(traced), trace_id(CallContext(request_id="abc"))) == ("4" * 32, "abc")


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/audio/speech", Dialect.OPENAI),
        ("/v2/chat", Dialect.COHERE),
        ("/v1/gpu/stream", Dialect.OURS),
        ("/status", Dialect.OURS),
        ("/nothing", Dialect.OURS),
    ],
)
def test_unknown_paths_speak_the_dialect_they_were_meant_for(path: str, dialect: Dialect) -> None:
    """An SDK that calls what is not here still reads its own shape."""
    assert dialect_of(path) is dialect
