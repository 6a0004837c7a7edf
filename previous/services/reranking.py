"""Reranking in the caller's own process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

from inference.models import ResolvedModel
from inference.rerankers import Method, RerankerRequest, find_reranker
from inference.tokenizing import TextTokenizer
from mesh.errors import InvalidRequest, ModelUnusable
from previous.services.embedding import BATCH_SIZE
from previous.torch_models import AUTO, pair_scorer, text_encoder


class _Scorer(Protocol):
    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """One score in [0, 1] per document, in their order."""
        ...


class RerankingService:
    """A query and documents to scores, by one model that this process holds: the model that the mesh would serve.

    >>> RerankingService().rerank("capital of France", ["Berlin", "Paris is in France"])  # doctest: +SKIP
    [0.5815146565437317, 0.7907055616378784]

    Args:
        model_name: a directory or a hub name; empty means the default cross-encoder where it can be had, otherwise late
            interaction over the default embedding model.
        method: None decides by the model.
        device: ``auto``, ``cpu`` or ``cuda:0``.

    Raises:
        ModelUnusable: the model is missing, damaged, or a language model, which this way could never rerank with.
    """

    def __init__(self, model_name: str = "", *, method: Method | None = None, device: str = AUTO) -> None:
        found = find_reranker(RerankerRequest(name=model_name, method=method, setting="model_name"))
        if found.method is Method.GENERATIVE:
            raise ModelUnusable(
                f"{found.model.name} is a language model, and only the mesh reranks with one. Name a cross-encoder.",
                reason="MODEL_WRONG_KIND",
            )
        self.model = found.model
        self.method = found.method
        late = found.method is Method.LATE_INTERACTION
        self._scorer: _Scorer = _LateInteraction(found.model, device) if late else _Pairs(found.model, device)
        self._one_at_a_time = threading.Lock()

    def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        """One score per document, in their order; higher is better, in [0, 1].

        Raises:
            InvalidRequest: the query holds nothing that the model has a token for.
        """
        if not documents:
            return []
        with self._one_at_a_time:
            return self._scorer.scores(query, documents)


class _LateInteraction:
    """MaxSim: the mean over the query's tokens of the largest cosine to any token of the document."""

    def __init__(self, model: ResolvedModel, device: str) -> None:
        self._encoder = text_encoder(model, device)
        tokenizer = TextTokenizer.load(model.path, name=model.name, max_tokens=model.card.max_input_tokens)
        self._before, self._after = tokenizer.specials

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """See _Scorer: a cosine's [-1, 1] onto [0, 1]."""
        states: list[Any] = self._encoder.encode(
            [query, *documents], batch_size=BATCH_SIZE, output_value="token_embeddings", show_progress_bar=False
        )
        asked, *read = [self._content(each) for each in states]
        if not len(asked):
            raise InvalidRequest(
                "The query holds nothing that the model has a token for. Ask in words.",
                reason="EMPTY_INPUT",
                param="query",
            )
        return [(float((asked @ each.T).amax(dim=1).mean()) + 1) / 2 if len(each) else 0.0 for each in read]

    def _content(self, states: Any) -> Any:
        """Without the special tokens, which resemble each other in any two texts, each scaled to length 1."""
        from torch.nn.functional import normalize

        return normalize(states[self._before : len(states) - self._after], dim=-1)


class _Pairs:
    """A cross-encoder: one forward pass for each pair."""

    def __init__(self, model: ResolvedModel, device: str) -> None:
        self._model = pair_scorer(model, device)

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """See _Scorer."""
        pairs = [(query, document) for document in documents]
        found = self._model.predict(pairs, batch_size=BATCH_SIZE, show_progress_bar=False)
        return [float(score) for score in found]
