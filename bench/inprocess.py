"""The models called directly, as an API process with torch in it does: the baselines of embedding and reranking.

They are the services of `previous`, which a team that goes back runs: sentence-transformers in float32, and nothing of
the workers' engines. Each gets as many of torch's threads as serve it best, which a real one may not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.aside import Aside
from bench.texts import Ranking

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class InProcess(Aside):
    """`previous`'s embedding and late interaction in float32 on the CPU, with as many threads as serve it best.

    torch takes one a core by itself. Where another process wants a core too, those threads wait for each other at every
    step, and one thread alone can be ten times faster. A baseline must not lose by that, so everything that is timed
    is done both ways, and the quicker one counts.
    """

    def __init__(self, model: Path) -> None:
        super().__init__("the in-process model", _Encoder, str(model))

    async def embedding_seconds(self, texts: Sequence[str]) -> float:
        """How long ``encode(texts, batch_size=32)`` takes, in one call, which sorts all of them by length."""
        seconds: float = await self.ask("embedding_seconds", list(texts))
        return seconds

    async def one_by_one_seconds(self, texts: Sequence[str]) -> float:
        """How long it takes to encode the texts in one call each."""
        seconds: float = await self.ask("one_by_one_seconds", list(texts))
        return seconds

    async def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The reference's vectors, (n, dim)."""
        found: NDArray[np.float32] = await self.ask("vectors", list(texts))
        return found

    async def ranking_seconds(self, rankings: Sequence[Ranking]) -> float:
        """How long MaxSim takes for these, one after the other."""
        seconds: float = await self.ask("ranking_seconds", list(rankings))
        return seconds

    async def scores(self, ranking: Ranking) -> list[float]:
        """The reference's scores, in the documents' order."""
        found: list[float] = await self.ask("scores", ranking)
        return found


class InProcessCrossEncoder(Aside):
    """`previous`'s cross-encoder in float32 on the CPU, timed as `InProcess` is."""

    def __init__(self, model: Path) -> None:
        super().__init__("the in-process cross-encoder", _CrossEncoder, str(model))

    async def ranking_seconds(self, rankings: Sequence[Ranking]) -> float:
        """How long ``predict(pairs, batch_size=32)`` takes for these, one call for each."""
        seconds: float = await self.ask("ranking_seconds", list(rankings))
        return seconds

    async def scores(self, ranking: Ranking) -> list[float]:
        """The reference's scores in [0, 1], in the documents' order."""
        found: list[float] = await self.ask("scores", ranking)
        return found


class EngineAlone(Aside):
    """The worker's own engine, called directly with one text at a time: no queue, no hop.

    Args:
        model: the model's directory.
        models_dir: where graphs and engine choices are kept.
        engine: its name, as ``Info`` tells it.
        threads: of one operator; 0 means as many as the worker takes by itself.
    """

    def __init__(self, model: Path, models_dir: Path, engine: str, *, threads: int) -> None:
        super().__init__(f"the engine {engine}", _Engine, model, models_dir, engine, threads)

    async def seconds(self, texts: Sequence[str]) -> list[tuple[float, float]]:
        """For each text: seconds from text to vector, and the engine's part of them, without the tokenizer's."""
        found: list[tuple[float, float]] = await self.ask("seconds", list(texts))
        return found


def _quicker(threads: int, work: Callable[[], object]) -> float:
    """The seconds that ``work`` takes with so many of torch's threads, or with one, whichever serves it better."""
    import torch  # type: ignore[import-not-found, unused-ignore]

    def seconds(count: int) -> float:
        torch.set_num_threads(count)
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return min(seconds(count) for count in {threads, 1})


class _Encoder:
    """What `InProcess` asks, in its process."""

    def __init__(self, model: str) -> None:
        import torch  # type: ignore[import-not-found, unused-ignore]

        from inference.rerankers import Method
        from previous.services.embedding import EmbeddingService
        from previous.services.reranking import RerankingService

        self._threads: int = torch.get_num_threads()
        self._embedding = EmbeddingService(model, device="cpu")
        self._reranking = RerankingService(model, method=Method.LATE_INTERACTION, device="cpu")
        self._embedding.generate_embeddings(["warm"])
        self._reranking.rerank("warm", ["warm"])

    def embedding_seconds(self, texts: list[str]) -> float:
        return _quicker(self._threads, lambda: self._embedding.generate_embeddings(texts))

    def one_by_one_seconds(self, texts: list[str]) -> float:
        return _quicker(self._threads, lambda: [self._embedding.generate_embeddings([text]) for text in texts])

    def vectors(self, texts: list[str]) -> Any:
        return self._embedding.generate_embeddings(texts)

    def ranking_seconds(self, rankings: list[Ranking]) -> float:
        return _quicker(self._threads, lambda: [self.scores(ranking) for ranking in rankings])

    def scores(self, ranking: Ranking) -> list[float]:
        """As cosines, the scale on which ties are told."""
        return [2 * score - 1 for score in self._reranking.rerank(ranking.query, ranking.documents)]


class _CrossEncoder:
    """What `InProcessCrossEncoder` asks, in its process."""

    def __init__(self, model: str) -> None:
        import torch  # type: ignore[import-not-found, unused-ignore]

        from previous.services.reranking import RerankingService

        self._threads: int = torch.get_num_threads()
        self._reranking = RerankingService(model, device="cpu")
        self._reranking.rerank("warm", ["warm"])

    def ranking_seconds(self, rankings: list[Ranking]) -> float:
        return _quicker(self._threads, lambda: [self.scores(ranking) for ranking in rankings])

    def scores(self, ranking: Ranking) -> list[float]:
        return self._reranking.rerank(ranking.query, ranking.documents)


class _Engine:
    """What `EngineAlone` asks, in its process."""

    def __init__(self, model: Path, models_dir: Path, engine: str, threads: int) -> None:
        from inference.card import ModelKind
        from inference.engines.choice import EnginePlan
        from inference.loading import load
        from inference.models import ModelRequest

        request = ModelRequest(name=str(model), kind=ModelKind.EMBEDDING)
        self._loaded = load(request, EnginePlan(models_dir=models_dir, engine=engine, threads=threads))

    def seconds(self, texts: list[str]) -> list[tuple[float, float]]:
        return [self._seconds(text) for text in texts]

    def _seconds(self, text: str) -> tuple[float, float]:
        from inference.padding import pad
        from inference.pooling import normalized
        from inference.tokenizing import Truncation

        began = time.perf_counter()
        inputs = self._loaded.tokenizer.singles([text], Truncation.END).inputs
        batch = pad(inputs, pad_token_id=self._loaded.model.card.pad_token_id)
        ready = time.perf_counter()
        found = self._loaded.engine.run(batch)
        computed = time.perf_counter()
        normalized(found)
        return time.perf_counter() - began, computed - ready
