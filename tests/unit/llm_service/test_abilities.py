"""What an engine cannot do is refused by name, with an engine that can; what it is not asked for does not matter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llm_service.abilities import ALL_ABILITIES, Ability, require_able
from llm_service.engines.transformers import TransformersEngine
from llm_service.generation import Generation, Message, Role, Sampling
from mesh.errors import WrongState
from mesh.generation import Image, ResponseFormat, Tool, ToolCall

CHAT = Generation(messages=(Message(Role.USER, "Hello"),))
CASES: list[tuple[Ability, str, dict[str, Any]]] = [
    (Ability.TOOLS, "tools", {"tools": (Tool("look"),)}),
    (Ability.TOOLS, "tools", {"messages": (Message(Role.ASSISTANT, tool_calls=(ToolCall("1", "look", "{}"),)),)}),
    (Ability.TOOLS, "tools", {"messages": (Message(Role.TOOL, "A cat.", tool_call_id="1"),)}),
    (Ability.JSON_OBJECT, "response_format", {"response_format": ResponseFormat()}),
    (Ability.JSON_SCHEMA, "response_format", {"response_format": ResponseFormat("{}", "answer")}),
    (Ability.CHOICES, "n", {"sampling": Sampling(n=2)}),
    (Ability.LOGPROBS, "logprobs", {"sampling": Sampling(top_logprobs=0)}),
    (Ability.IMAGES, "messages", {"messages": (Message(Role.USER, parts=(Image(b"x", "image/png"),)),)}),
    (Ability.TOP_K, "top_k", {"sampling": Sampling(top_k=5)}),
    (Ability.MIN_P, "min_p", {"sampling": Sampling(min_p=0.1)}),
    (Ability.REPETITION_PENALTY, "repetition_penalty", {"sampling": Sampling(repetition_penalty=1.1)}),
]


@pytest.mark.parametrize(("ability", "param", "changes"), CASES)
def test_what_is_missing_is_refused_by_name(ability: Ability, param: str, changes: dict[str, Any]) -> None:
    """The refusal names the field, and either an engine that can or that the model does not see."""
    request = replace(CHAT, **changes)
    with pytest.raises(WrongState) as caught:
        require_able(request, ALL_ABILITIES - {ability}, "small")
    expected = "NO_IMAGES" if ability is Ability.IMAGES else "UNSUPPORTED_BY_ENGINE"
    assert (caught.value.param, caught.value.reason) == (param, expected)
    assert ability is Ability.IMAGES or "LLM_ENGINE=vllm" in caught.value.message
    require_able(request, frozenset({ability}), "able")


def test_every_ability_has_its_case() -> None:
    """None can be added without a refusal that tells what it is."""
    assert {ability for ability, _, _ in CASES} == set(Ability)


def test_transformers_writes_plain_text() -> None:
    """One answer with a temperature needs no ability at all; n=1 asks for nothing."""
    require_able(replace(CHAT, sampling=Sampling(temperature=0.5, n=1)), TransformersEngine.abilities, "transformers")
    with pytest.raises(WrongState, match="transformers"):
        require_able(replace(CHAT, tools=(Tool("look"),)), TransformersEngine.abilities, "transformers")
