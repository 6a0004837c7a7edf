"""Questions of known answer, asked of a reranker before it serves: what fails them would rank in any order."""

from __future__ import annotations

import numpy as np

from inference.loading import LoadedModel
from inference.padding import pad
from inference.profiles import GoldenPair, GoldenScore, RerankingProfile
from inference.tokenizing import Truncation
from mesh.errors import ModelUnusable


def require_sense(loaded: LoadedModel, profile: RerankingProfile, *, source: str) -> None:
    """Have the loaded model score the profile's questions.

    Args:
        loaded: its engine and its prompt's tokenizer.
        profile: the questions.
        source: where they are written, for the message.

    Raises:
        ModelUnusable: an irrelevant document comes too close to the relevant one, or a known score is not met.
    """
    for pair in profile.golden:
        _require_order(loaded, pair, source)
    for known in profile.scores:
        _require_score(loaded, known, source)


def _require_order(loaded: LoadedModel, pair: GoldenPair, source: str) -> None:
    relevant, irrelevant = _probabilities(loaded, pair.query, pair.relevant, pair.irrelevant)
    # Written so that a score that is no number fails too.
    if not relevant - irrelevant >= pair.margin:
        raise _nonsense(
            loaded,
            f"for {pair.query!r} it scores the relevant document {relevant:.3f} and the irrelevant one "
            f"{irrelevant:.3f}, and {pair.margin} should lie between",
            source,
        )


def _require_score(loaded: LoadedModel, known: GoldenScore, source: str) -> None:
    (found,) = _probabilities(loaded, known.query, known.document)
    if not abs(found - known.score) <= known.tolerance:
        raise _nonsense(
            loaded,
            f"for {known.query!r} it scores {found:.3f} where {known.score} ± {known.tolerance} is known",
            source,
        )


def _nonsense(loaded: LoadedModel, said: str, source: str) -> ModelUnusable:
    return ModelUnusable(
        f"{loaded.model.name} fails the golden check of its profile ({source}): {said}. Either the profile belongs to "
        "another model, or the weights are not a reranker's: choose a reranker, or write a profile for this model.",
        reason="MODEL_FAILS_GOLDEN_CHECK",
    )


def _probabilities(loaded: LoadedModel, query: str, *documents: str) -> list[float]:
    inputs = loaded.tokenizer.pairs(query, documents, Truncation.END).inputs
    logits = loaded.engine.run(pad(inputs, pad_token_id=loaded.model.card.pad_token_id))[:, 0]
    found: list[float] = (0.5 * (1 + np.tanh(logits.astype(np.float64) / 2))).tolist()
    return found
