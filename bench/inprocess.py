"""The model called directly, as an API process with torch in it does: the baseline of embedding and reranking.

It lives in a process of its own, so that torch's threads and memory are not the load generator's, and it waits while
the mesh is measured.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from bench.texts import Ranking

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BATCH_SIZE = 32
_END_SECONDS = 2.0


class BaselineFailed(Exception):
    """The in-process model cannot be used here."""


class InProcess:
    """A SentenceTransformer in float32 on the CPU, with as many threads as serve it best.

    torch takes one a core by itself. Where another process wants a core too, those threads wait for each other at every
    step, and one thread alone can be ten times faster. A baseline must not lose by that, so everything that is timed
    is done both ways, and the quicker one counts.
    """

    def __init__(self, model: Path) -> None:
        self._model = model

    async def __aenter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, str(self._model)), daemon=True)
        self._process.start()
        theirs.close()
        try:
            await self._ask("ready")
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        self._connection.close()  # a child that waits for its next task ends by that
        await asyncio.to_thread(self._process.join, _END_SECONDS)
        self._process.terminate()
        await asyncio.to_thread(self._process.join, _END_SECONDS)

    async def embedding_seconds(self, texts: Sequence[str]) -> float:
        """How long ``encode(texts, batch_size=32)`` takes, in one call, which sorts all of them by length."""
        seconds: float = await self._ask("embedding_seconds", list(texts))
        return seconds

    async def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The reference's vectors, (n, dim)."""
        found: NDArray[np.float32] = await self._ask("vectors", list(texts))
        return found

    async def ranking_seconds(self, rankings: Sequence[Ranking]) -> float:
        """How long MaxSim takes for these, one after the other."""
        seconds: float = await self._ask("ranking_seconds", list(rankings))
        return seconds

    async def scores(self, ranking: Ranking) -> list[float]:
        """The reference's scores, in the documents' order."""
        found: list[float] = await self._ask("scores", ranking)
        return found

    async def _ask(self, task: str, *arguments: Any) -> Any:
        return await asyncio.to_thread(self._exchange, task, arguments)

    def _exchange(self, task: str, arguments: tuple[Any, ...]) -> Any:
        try:
            self._connection.send((task, arguments))
            done, result = self._connection.recv()
        except (EOFError, OSError) as error:
            raise BaselineFailed("The process with the in-process model ended.") from error
        if not done:
            raise BaselineFailed(f"The in-process model failed: {result}")
        return result


def _serve(connection: Connection, model: str) -> None:
    """The child: answers until its parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    try:
        reference: _Reference | str = _Reference(model)
    except Exception as error:  # told to the parent, whatever it is
        reference = f"{type(error).__name__}: {error}"
    while True:
        try:
            task, arguments = connection.recv()
        except EOFError:
            return
        if isinstance(reference, str):
            connection.send((False, reference))
            continue
        try:
            connection.send((True, getattr(reference, task)(*arguments)))
        except Exception as error:  # told to the parent, whatever it is
            connection.send((False, f"{type(error).__name__}: {error}"))


class _Reference:
    """What the child does; each method is a task of `InProcess`."""

    def __init__(self, model: str) -> None:
        import torch  # type: ignore[import-not-found, unused-ignore]
        from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found, unused-ignore]
        from transformers.utils.logging import disable_progress_bar  # type: ignore[import-not-found, unused-ignore]

        disable_progress_bar()
        self._threads: int = torch.get_num_threads()
        self._model = SentenceTransformer(model, device="cpu").float()

    def ready(self) -> bool:
        self._model.encode(["warm"])
        return True

    def embedding_seconds(self, texts: list[str]) -> float:
        return self._quicker(lambda: self._model.encode(texts, batch_size=BATCH_SIZE))

    def vectors(self, texts: list[str]) -> Any:
        return self._model.encode(texts, batch_size=BATCH_SIZE, normalize_embeddings=True)

    def ranking_seconds(self, rankings: list[Ranking]) -> float:
        return self._quicker(lambda: [self.scores(ranking) for ranking in rankings])

    def _quicker(self, work: Callable[[], object]) -> float:
        """The seconds that ``work`` takes with the number of threads that serves it better."""
        import torch  # type: ignore[import-not-found, unused-ignore]

        def seconds(threads: int) -> float:
            torch.set_num_threads(threads)
            began = time.perf_counter()
            work()
            return time.perf_counter() - began

        return min(seconds(threads) for threads in {self._threads, 1})

    def scores(self, ranking: Ranking) -> list[float]:
        """MaxSim: the mean over the query's words of the largest cosine to any word of the document."""
        from torch.nn.functional import normalize  # type: ignore[import-not-found, unused-ignore]

        states = self._model.encode(
            [ranking.query, *ranking.documents], batch_size=BATCH_SIZE, output_value="token_embeddings"
        )
        # The first and the last token are special: they resemble each other in any two texts.
        query, *documents = [normalize(state[1:-1], dim=-1) for state in states]
        return [float((query @ document.T).amax(dim=1).mean()) for document in documents]
