"""What engines can do beyond plain text. What one cannot do is refused by name, and never left out in silence."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from llm_service.generation import Generation
from mesh.errors import WrongState


class Ability(Enum):
    """Something that not every engine can do; the value is what ``Info`` calls it."""

    TOOLS = "tools"
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    CHOICES = "n"
    LOGPROBS = "logprobs"
    IMAGES = "images"
    TOP_K = "top_k"
    MIN_P = "min_p"
    REPETITION_PENALTY = "repetition_penalty"


ALL_ABILITIES = frozenset(Ability)
"""Of an engine that refuses by itself what it cannot do."""

_WHAT = {
    Ability.TOOLS: "call tools",
    Ability.JSON_OBJECT: "be held to JSON",
    Ability.JSON_SCHEMA: "be held to a JSON schema",
    Ability.CHOICES: "write several answers to one prompt",
    Ability.LOGPROBS: "tell probabilities",
    Ability.TOP_K: "apply top_k",
    Ability.MIN_P: "apply min_p",
    Ability.REPETITION_PENALTY: "apply repetition_penalty",
}


def require_able(request: Generation, abilities: frozenset[Ability], engine: str) -> None:
    """Refuse what the engine cannot do.

    Raises:
        WrongState: reason NO_IMAGES, or UNSUPPORTED_BY_ENGINE with the field as ``param`` and an engine that can.
    """
    for ability, param in _asked_of(request):
        if ability in abilities:
            continue
        if ability is Ability.IMAGES:
            raise WrongState(
                "The model in use reads text alone; leave the images out, or have a model served that sees.",
                reason="NO_IMAGES",
                param=param,
            )
        raise WrongState(
            f"The engine in use, {engine}, cannot {_WHAT[ability]}; leave {param} out, or have the model served with "
            "LLM_ENGINE=vllm, which can.",
            reason="UNSUPPORTED_BY_ENGINE",
            param=param,
        )


def _asked_of(request: Generation) -> Iterator[tuple[Ability, str]]:
    """What the request needs, each with the field that asks for it."""
    sampling = request.sampling
    if request.tools or any(message.tool_calls or message.tool_call_id for message in request.messages):
        yield Ability.TOOLS, "tools"
    if request.response_format is not None:
        yield (Ability.JSON_SCHEMA if request.response_format.schema else Ability.JSON_OBJECT), "response_format"
    if request.choices > 1:
        yield Ability.CHOICES, "n"
    if sampling.top_logprobs is not None:
        yield Ability.LOGPROBS, "logprobs"
    if any(message.images for message in request.messages):
        yield Ability.IMAGES, "messages"
    if sampling.top_k is not None:
        yield Ability.TOP_K, "top_k"
    if sampling.min_p is not None:
        yield Ability.MIN_P, "min_p"
    if sampling.repetition_penalty is not None:
        yield Ability.REPETITION_PENALTY, "repetition_penalty"
