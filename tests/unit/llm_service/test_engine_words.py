"""What an engine says of a request that it refuses may quote the prompt; the log has the kind alone."""

from __future__ import annotations

import json

import pytest

from llm_service.engines.completions import _mid_stream_failure, refusal

SECRET = "canary-prompt-31"


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """Everything of the lines: message and fields."""
    return " ".join(f"{record.getMessage()} {vars(record).get('fields')}" for record in caplog.records)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"error": {"message": f"cannot read {SECRET}", "type": "BadRequestError", "code": 400}}, "BadRequestError"),
        ({"error": {"message": SECRET, "type": None, "code": "context_length_exceeded"}}, "context_length_exceeded"),
        ({"message": SECRET, "type": "invalid_request_error"}, "invalid_request_error"),
        ({"error": {"message": SECRET, "type": f"no word but {SECRET}"}}, ""),
        ({"error": SECRET}, ""),
        ([SECRET], ""),
        (SECRET, ""),
    ],
)
def test_the_kind_of_a_refusal_is_logged_and_its_sentence_is_not(
    caplog: pytest.LogCaptureFixture, said: object, kind: str
) -> None:
    """Before the answer and in the middle of it; the client's error does not have the sentence either."""
    early = refusal(400, json.dumps(said).encode(), {})
    late = _mid_stream_failure(json.dumps(said))
    assert SECRET not in logged(caplog)
    assert [vars(record)["fields"]["kind"] for record in caplog.records] == [kind, kind]
    assert SECRET not in early.message + late.message


def test_an_engine_that_does_not_speak_json_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    """A proxy's page, or nothing at all."""
    for body in (f"<html>{SECRET}</html>".encode(), b"", b"[" * 100_000):
        refusal(502, body, {})
    assert SECRET not in logged(caplog)
