"""Proto and domain are translated without loss: what is unset stays unset, what is zero stays zero."""

from __future__ import annotations

import pytest

from llm_service.generation import Finish, FinishReason, Header, Piece, Role, Sampling, Timings, Usage
from llm_service.servicer import event_to_wire, generation_from_wire
from mesh.errors import InvalidRequest
from mesh.pb.llm.v1 import llm_pb2 as pb


def test_unset_is_not_zero() -> None:
    """A temperature of 0 arrives as 0, and one that was not sent arrives as None."""
    explicit = pb.GenerateRequest(prompt="x", sampling=pb.Sampling(temperature=0, seed=0, max_tokens=0))
    assert generation_from_wire(explicit).sampling == Sampling(temperature=0.0, seed=0, max_tokens=0)
    assert generation_from_wire(pb.GenerateRequest(prompt="x")).sampling == Sampling()


def test_an_empty_prompt_is_still_a_prompt() -> None:
    """An empty prompt is told apart from none, so that it can be refused by its name."""
    assert generation_from_wire(pb.GenerateRequest(prompt="")).prompt == ""
    assert generation_from_wire(pb.GenerateRequest()).prompt is None


def test_every_role_has_a_meaning() -> None:
    """Each role of the proto but the unspecified one is known."""
    roles = [role for role in pb.Role.DESCRIPTOR.values_by_name if role != "ROLE_UNSPECIFIED"]
    request = pb.GenerateRequest(chat=pb.Chat(messages=[pb.Message(role=role, content="x") for role in roles]))
    assert set(Role) == {message.role for message in generation_from_wire(request).messages}


def test_a_message_without_a_role_is_refused() -> None:
    """A message whose role is missing is named by its place."""
    messages = [pb.Message(role=pb.ROLE_USER, content="x"), pb.Message(content="y")]
    with pytest.raises(InvalidRequest) as caught:
        generation_from_wire(pb.GenerateRequest(chat=pb.Chat(messages=messages)))
    assert caught.value.param == "messages[1].role"


@pytest.mark.parametrize("reason", FinishReason)
def test_events_on_the_wire(reason: FinishReason) -> None:
    """Header, piece and finish keep all they carry."""
    assert event_to_wire(Header("m", 7)).header == pb.GenerateHeader(model="m", created_unix_seconds=7)
    assert event_to_wire(Piece("é")).piece.text == "é"
    finish = event_to_wire(Finish(reason, Usage(1, 2), Timings(9, 3, 5))).finish
    assert pb.FinishReason.Name(finish.reason) == f"FINISH_REASON_{reason.name}"
    assert (
        finish.usage.prompt_tokens,
        finish.usage.completion_tokens,
        finish.timings.total_us,
        finish.timings.queue_us,
        finish.timings.first_token_us,
    ) == (1, 2, 9, 3, 5)


def test_unknown_usage_stays_unknown() -> None:
    """Usage that the engine did not give is left out, not sent as zeros."""
    assert not event_to_wire(Finish(FinishReason.STOP, None, Timings(1, 1, 1))).finish.HasField("usage")
