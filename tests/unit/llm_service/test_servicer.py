"""Proto and domain are translated without loss: what is unset stays unset, what is zero stays zero."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from llm_service.generation import (
    Ending,
    Finish,
    FinishReason,
    Generation,
    Header,
    Piece,
    Role,
    Sampling,
    Timings,
    Usage,
)
from llm_service.servicer import (
    chat_from_wire,
    completion_from_wire,
    event_to_wire,
    frame_to_wire,
    generation_from_wire,
)
from mesh.clients.llm_wire import (
    chat_to_wire,
    completion_to_wire,
    event_from_wire,
    first_form_from_wire,
    generation_to_wire,
)
from mesh.context import Priority
from mesh.errors import InvalidRequest
from mesh.generation import (
    Event,
    Image,
    Message,
    ResponseFormat,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolChoiceMode,
    TopLogprob,
)
from mesh.pb.llm.v1 import llm_pb2 as pb

ALL_SAMPLING = Sampling(
    temperature=0.5, top_p=0.25, max_tokens=7, stop=("END",), seed=-3, presence_penalty=-1.0, frequency_penalty=1.5,
    top_k=9, min_p=0.125, repetition_penalty=1.25, n=3, top_logprobs=2,
)  # fmt: skip
ALL_ZERO = Sampling(
    temperature=0.0, top_p=0.0, max_tokens=0, seed=0, presence_penalty=0.0, frequency_penalty=0.0, top_k=0, min_p=0.0,
    repetition_penalty=0.0, n=0, top_logprobs=0,
)  # fmt: skip
MESSAGES = (
    Message(Role.SYSTEM, "Be brief."),
    Message(Role.USER, name="Ada", parts=("What is this?", Image(b"\x89PNG", "image/png", "low"))),
    Message(Role.ASSISTANT, tool_calls=(ToolCall("call_1", "look", '{"at": 1}'),)),
    Message(Role.TOOL, "A cat.", tool_call_id="call_1"),
)
CHAT = Generation(
    messages=MESSAGES,
    model="m",
    sampling=ALL_SAMPLING,
    tools=(Tool("look", "Looks.", '{"type": "object"}', strict=True), Tool("leave")),
    tool_choice=ToolChoice(ToolChoiceMode.NAMED, "look"),
    parallel_tool_calls=False,
    response_format=ResponseFormat('{"type": "object"}', "answer", "An answer.", strict=False),
    priority=Priority.BULK,
)
EVENTS: list[Event] = [
    Header("m", 7, Usage(3, 0, 1)),
    Header("m", 7),
    Piece("é", 2, "hm", (ToolCallDelta(1, "call_1", "look", "{"),), (TokenLogprob("é", b"\xc3\xa9", -0.5),)),
    Piece("x", logprobs=(TokenLogprob("x", b"x", 0.0, (TopLogprob("y", b"y", -1.5),)),)),
    Finish((Ending(FinishReason.STOP, "END"), Ending(FinishReason.TOOL_CALLS)), Usage(1, 2, 0, 0), Timings(9, 3, 5)),
    Finish((Ending(FinishReason.LENGTH),), None, Timings(1, 1, 1)),
]


def test_a_chat_survives_the_wire() -> None:
    """Every field of a chat arrives as it was sent, and none of them has been forgotten here."""
    unset = {each.name for each in fields(Generation) if getattr(CHAT, each.name) == getattr(Generation(), each.name)}
    assert unset == {"prompt", "prompt_tokens"}
    assert chat_from_wire(chat_to_wire(CHAT)) == CHAT


def test_a_prompt_survives_the_wire() -> None:
    """Every field that a prompt may have arrives as it was sent."""
    request = replace(
        Generation(prompt="Once", model="m", sampling=ALL_SAMPLING, response_format=ResponseFormat()),
        priority=Priority.INTERACTIVE,
    )
    assert completion_from_wire(completion_to_wire(request)) == request


@pytest.mark.parametrize("sampling", [Sampling(), ALL_ZERO], ids=["unset", "zero"])
def test_unset_is_not_zero(sampling: Sampling) -> None:
    """What was not sent arrives as None, and a zero as zero, in all three requests."""
    asked = Generation(prompt="x", sampling=sampling)
    chat = Generation(messages=MESSAGES[:1], sampling=sampling)
    assert completion_from_wire(completion_to_wire(asked)) == asked
    assert generation_from_wire(generation_to_wire(asked)) == asked
    assert chat_from_wire(chat_to_wire(chat)) == chat


@pytest.mark.parametrize("mode", [mode for mode in ToolChoiceMode if mode is not ToolChoiceMode.NAMED])
def test_every_tool_choice_survives_the_wire(mode: ToolChoiceMode) -> None:
    """Each mode is told apart from the others and from none."""
    request = replace(CHAT, tool_choice=ToolChoice(mode))
    assert chat_from_wire(chat_to_wire(request)).tool_choice == ToolChoice(mode)


def test_an_empty_prompt_is_still_a_prompt() -> None:
    """An empty prompt is told apart from none, so that it can be refused by its name."""
    assert generation_from_wire(pb.GenerateRequest(prompt="")).prompt == ""
    assert generation_from_wire(pb.GenerateRequest()).prompt is None
    assert completion_from_wire(pb.CompleteRequest()).prompt == ""


def test_every_role_has_a_meaning() -> None:
    """Each role of the proto but the unspecified one is known."""
    roles = [role for role in pb.Role.DESCRIPTOR.values_by_name if role != "ROLE_UNSPECIFIED"]
    request = pb.ChatRequest(messages=[pb.Message(role=role, content="x") for role in roles])
    assert set(Role) == {message.role for message in chat_from_wire(request).messages}


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (pb.ChatRequest(messages=[pb.Message(role=pb.ROLE_USER), pb.Message(content="y")]), "messages[1].role"),
        (pb.ChatRequest(messages=[pb.Message(role=pb.ROLE_USER, parts=[pb.ContentPart()])]), "messages[0].parts"),
        (pb.ChatRequest(tool_choice=pb.ToolChoice(name="look")), "tool_choice"),
    ],
    ids=["no role", "an empty part", "no mode"],
)
def test_what_means_nothing_is_refused_by_its_place(request_: pb.ChatRequest, param: str) -> None:
    """A role, a part or a mode that is missing is no default."""
    with pytest.raises(InvalidRequest) as caught:
        chat_from_wire(request_)
    assert caught.value.param == param


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_survive_the_wire(event: Event) -> None:
    """Start, deltas and finish keep all they carry, in a chat's answer and in a completion's."""
    assert event_from_wire(pb.ChatResponse(**frame_to_wire(event))) == event
    assert event_from_wire(pb.CompleteResponse(**frame_to_wire(event))) == event


@pytest.mark.parametrize("reason", FinishReason)
def test_events_in_the_first_form(reason: FinishReason) -> None:
    """Header, piece and finish keep text, reason, usage and timings for clients of earlier versions."""
    finish = Finish((Ending(reason),), Usage(1, 2), Timings(9, 3, 5))
    for event in (Header("m", 7), Piece("é"), finish):
        assert first_form_from_wire(event_to_wire(event)) == event


def test_unknown_usage_stays_unknown() -> None:
    """Usage that the engine did not give is left out, not sent as zeros."""
    finish = Finish((Ending(FinishReason.STOP),), None, Timings(1, 1, 1))
    assert not event_to_wire(finish).finish.HasField("usage")
    assert not frame_to_wire(finish)["finish"].HasField("usage")
