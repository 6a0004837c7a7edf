"""A stream of events amounts to one answer, however the pieces of its choices are mixed."""

from __future__ import annotations

import pytest

from mesh.generation import (
    Choice,
    Ending,
    Finish,
    FinishReason,
    Header,
    Piece,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
    fold,
)

TIMINGS = Timings(9, 3, 5)


def test_choices_are_gathered_apart() -> None:
    """Texts, thoughts, calls and probabilities go to the choice that they belong to."""
    said = TokenLogprob("a", b"a", -0.5)
    answer = fold(
        [
            Header("m", 7),
            Piece("a", logprobs=(said,)),
            Piece("x", 1, "hm"),
            Piece(choice=1, tool_calls=(ToolCallDelta(1, "call_2", "leave"), ToolCallDelta(0, "call_1", "look", "{"))),
            Piece("b"),
            Piece(choice=1, tool_calls=(ToolCallDelta(0, arguments="}"),)),
            Finish((Ending(FinishReason.STOP, "END"), Ending(FinishReason.TOOL_CALLS)), Usage(1, 2), TIMINGS),
        ]
    )
    calls = (ToolCall("call_1", "look", "{}"), ToolCall("call_2", "leave", ""))
    assert answer.choices == (
        Choice("ab", Ending(FinishReason.STOP, "END"), logprobs=(said,)),
        Choice("x", Ending(FinishReason.TOOL_CALLS), "hm", calls),
    )
    assert (answer.model, answer.text, answer.reason, answer.usage) == ("m", "ab", FinishReason.STOP, Usage(1, 2))


def test_an_answer_may_be_empty() -> None:
    """A model that says nothing has answered all the same."""
    assert fold([Header("m", 7), Finish((Ending(FinishReason.STOP),), None, TIMINGS)]).text == ""


def test_without_a_finish_there_is_no_answer() -> None:
    """What broke off is never folded into something that looks whole."""
    with pytest.raises(ValueError, match="Finish"):
        fold([Header("m", 7), Piece("a")])
