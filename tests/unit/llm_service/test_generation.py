"""Every number of a request is held to the bounds that the proto states."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from llm_service.generation import MAX_MESSAGES, Generation, Message, Role, Sampling, check
from mesh.errors import InvalidRequest

HELLO = Message(Role.USER, "Hello")
CHAT = Generation(messages=(HELLO,))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.01),
        ("temperature", 2.01),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("max_tokens", 0),
        ("max_tokens", 101),
        ("max_tokens", 4_294_967_295),
        ("presence_penalty", -2.5),
        ("frequency_penalty", 2.5),
        ("frequency_penalty", -math.inf),
        ("stop", ("",)),
        ("stop", ("x" * 257,)),
        ("stop", ("a", "b", "c", "d", "e")),
    ],
)
def test_a_value_outside_its_bounds_is_refused_by_name(field: str, value: Any) -> None:
    """A value outside its bounds is an InvalidRequest that names the field."""
    request = replace(CHAT, sampling=replace(Sampling(), **{field: value}))
    with pytest.raises(InvalidRequest) as caught:
        check(request, max_output_tokens=100)
    assert caught.value.param == field


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.0, top_p=1.0, max_tokens=1),
        Sampling(temperature=2.0, top_p=0.01, max_tokens=100, stop=("x" * 256,) * 4, seed=-1),
        Sampling(presence_penalty=-2.0, frequency_penalty=2.0),
    ],
)
def test_the_bounds_themselves_are_allowed(sampling: Sampling) -> None:
    """The least and the greatest allowed values pass."""
    check(replace(CHAT, sampling=sampling), max_output_tokens=100)


@pytest.mark.parametrize(
    "request_",
    [
        Generation(),
        Generation(prompt=""),
        Generation(prompt="x", messages=(HELLO,)),
        Generation(messages=(HELLO,) * (MAX_MESSAGES + 1)),
    ],
    ids=["nothing", "empty prompt", "both", "too many messages"],
)
def test_exactly_one_input_is_needed(request_: Generation) -> None:
    """A request has a prompt or some messages, not both and not thousands."""
    with pytest.raises(InvalidRequest):
        check(request_, max_output_tokens=100)
