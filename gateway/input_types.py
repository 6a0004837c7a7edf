"""What an input is for, in the words of every dialect that says it."""

from __future__ import annotations

from dataclasses import replace

from mesh.clients.embedding import EmbedOptions, InputType

_SPOKEN = {
    InputType.QUERY: ("query", "search_query", "retrieval.query"),
    InputType.DOCUMENT: ("document", "passage", "search_document", "retrieval.passage"),
    InputType.CLASSIFICATION: ("classification",),
    InputType.CLUSTERING: ("clustering", "separation"),
    InputType.SIMILARITY: ("similarity", "text-matching"),
}
"""Ours, NVIDIA NIM's, Cohere's and Jina's."""

_INPUT_TYPES = {name: input_type for input_type, names in _SPOKEN.items() for name in names}
LONGEST_NAME = 128


def with_input_type(options: EmbedOptions, name: str | None) -> EmbedOptions:
    """``options`` for inputs of the type that a client calls ``name``.

    A name that no dialect has is asked for as a prompt of the model itself: the worker knows those, and refuses any
    other with the ones that there are.
    """
    if not name:
        return options
    known = _INPUT_TYPES.get(name.lower())
    return replace(options, prompt_name=name) if known is None else replace(options, input_type=known)
