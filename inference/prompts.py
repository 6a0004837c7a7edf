"""Which prefix an input gets: by what it is for, or by the name that the model gives a prompt."""

from __future__ import annotations

from enum import Enum

from inference.card import ModelCard
from mesh.errors import InvalidRequest


class InputType(Enum):
    """What an input is for. Each exists for every model; one that the model has no prompt for is read as it is."""

    UNSPECIFIED = ""
    QUERY = "query"
    DOCUMENT = "document"
    CLASSIFICATION = "classification"
    CLUSTERING = "clustering"
    SIMILARITY = "similarity"


_NAMED = {
    InputType.QUERY: ("query", "search_query", "retrieval.query"),
    InputType.DOCUMENT: ("document", "passage", "corpus", "search_document", "retrieval.passage"),
    InputType.CLASSIFICATION: ("classification",),
    InputType.CLUSTERING: ("clustering", "separation"),
    InputType.SIMILARITY: ("similarity", "text-matching", "sts"),
}
"""What models call the prompt for each type, without regard to case; the first that is there counts."""


def prefix(card: ModelCard, input_type: InputType, prompt_name: str = "") -> str:
    """What is put before each input.

    Args:
        card: the model's, with its prompts.
        input_type: what the inputs are for; UNSPECIFIED is the model's default prompt.
        prompt_name: one of the model's own prompts, instead of a type.

    Raises:
        InvalidRequest: the model has no prompt of that name, or both were stated.
    """
    if not prompt_name:
        return _of_type(card, input_type)
    if input_type is not InputType.UNSPECIFIED:
        raise InvalidRequest("State input_type or prompt_name, not both.", param="input_type")
    if prompt_name not in card.prompts:
        types = ", ".join(each.value for each in InputType if each.value)
        own = ", ".join(card.prompts) or "none"
        raise InvalidRequest(
            f"There is no input type or prompt {prompt_name[:64]!r}. Input types: {types}. "
            f"Prompts of this model: {own}.",
            reason="UNKNOWN_PROMPT",
            param="input_type",
        )
    return card.prompts[prompt_name]


def _of_type(card: ModelCard, input_type: InputType) -> str:
    if input_type is InputType.UNSPECIFIED:
        return card.prompts.get(card.default_prompt, "")
    stated = {name.lower(): text for name, text in card.prompts.items()}
    return next((stated[name] for name in _NAMED[input_type] if name in stated), "")
