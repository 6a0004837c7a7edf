"""Under which name a vector is kept: everything that decides it, and nothing that does not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b

from mesh.clients.embedding import EmbedInputs, EmbedOptions, TokenInputs
from mesh.context import current_call

KEY_BYTES = 32


def keys_of(fingerprint: str, inputs: EmbedInputs, options: EmbedOptions) -> list[bytes]:
    """One key per input, in their order; equal for equal inputs.

    ``fingerprint`` stands for model, revision, engine, precision, pooling and prompts (`EmbeddingModel`). The tenant
    is part of a key because a hit tells that somebody sent the same text before.
    """
    call = current_call.get()
    decided_by = [
        fingerprint,
        call.tenant if call is not None else "",
        options.dimensions,
        options.normalize,
        options.truncation.value,
        options.input_type.value,
        options.prompt_name,
        "ids" if isinstance(inputs, TokenInputs) else "text",
    ]
    shared = blake2b(json.dumps(decided_by).encode() + b"\n", digest_size=KEY_BYTES)
    keys = []
    for content in _contents(inputs):
        one = shared.copy()
        one.update(content)
        keys.append(one.digest())
    return keys


def _contents(inputs: EmbedInputs) -> Iterable[bytes]:
    if isinstance(inputs, TokenInputs):
        return (",".join(map(str, ids)).encode() for ids in inputs.ids)
    # Half a character has a key as well, so that the refusal is the client's own.
    return (text.encode("utf-8", "surrogatepass") for text in inputs)


def some_of(inputs: EmbedInputs, positions: Iterable[int]) -> EmbedInputs:
    """The inputs at these positions."""
    if isinstance(inputs, TokenInputs):
        return TokenInputs([inputs.ids[position] for position in positions])
    return [inputs[position] for position in positions]


def count_of(inputs: EmbedInputs) -> int:
    """How many inputs there are."""
    return len(inputs.ids) if isinstance(inputs, TokenInputs) else len(inputs)


def characters_of(inputs: EmbedInputs) -> int:
    """Characters of the inputs, as the worker counts them: ids have none."""
    return 0 if isinstance(inputs, TokenInputs) else sum(map(len, inputs))
