"""What one model's runner promises: room is asked for by what a request can become, which no one client can distort."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from inference.runner import ModelRunner, RunnerLimits, TextSize
from inference.testing import GatedRun, fake_loaded_model
from inference.tokenizing import Tokenized, TokenizedInput, Truncation
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import Overloaded

LIMITS = RunnerLimits(items_per_request=2048, tokens_per_request=300, queued_tokens=600, batch_tokens=64)

Runner = ModelRunner[TokenizedInput, int]


class GatedTokens(GatedRun):
    """A gated ``run`` for tokenized inputs: it answers their lengths."""

    def __call__(self, works: Sequence[TokenizedInput]) -> list[int]:  # type: ignore[override]  # other works
        """One number per input."""
        self.entered.release()
        self.gate.wait()
        return [work.tokens for work in works]


@asynccontextmanager
async def running(path: Path, run: GatedTokens) -> AsyncIterator[Runner]:
    """A started runner whose model reads 16 tokens of an input."""
    runner: Runner = ModelRunner(fake_loaded_model(path), run, LIMITS, capability="test")
    runner.start()
    try:
        yield runner
    finally:
        run.gate.set()
        await runner.stop()


async def tokenized(runner: Runner, path: Path, texts: list[str]) -> Tokenized:
    """One request's texts as the model reads them."""
    tokenizer = fake_loaded_model(path).tokenizer
    return await runner.tokenize(
        TextSize(len(texts), sum(map(len, texts))),
        lambda: tokenizer.singles(texts, Truncation.END),
        deadline=Deadline.after(30),
        priority=Priority.INTERACTIVE,
    )


async def filled(runner: Runner, run: GatedTokens, path: Path, texts: list[str]) -> asyncio.Task[object]:
    """Keep the engine busy and ``texts`` in the queue."""
    inputs = fake_loaded_model(path).tokenizer.singles(texts, Truncation.END).inputs
    blocker = fake_loaded_model(path).tokenizer.singles(["cat"], Truncation.END).inputs

    async def submit(works: Sequence[TokenizedInput]) -> None:
        await runner.submit(works, deadline=Deadline.after(30), priority=Priority.INTERACTIVE)

    first = asyncio.create_task(submit(blocker))
    assert await asyncio.to_thread(run.entered.acquire, timeout=5)
    second = asyncio.create_task(submit(inputs))
    while runner.queued_tokens == 0:
        await asyncio.sleep(0)
    return asyncio.ensure_future(asyncio.gather(first, second))


async def test_long_texts_ask_for_the_room_that_is_left_of_them_after_truncation(tmp_path: Path) -> None:
    """Ten texts of thousands of characters become 160 tokens: there is room for them beside a few others."""
    run = GatedTokens(is_open=False)
    async with running(tmp_path, run) as runner:
        waiting = await filled(runner, run, tmp_path, ["a b c"])
        assert (await tokenized(runner, tmp_path, ["red " * 1000] * 10)).tokens == 160
        run.gate.set()
        await waiting


async def test_no_request_asks_for_more_room_than_a_request_may_take(tmp_path: Path) -> None:
    """What is too large is told so by its count of tokens, whoever else waits, not that the queue is full."""
    run = GatedTokens(is_open=False)
    async with running(tmp_path, run) as runner:
        waiting = await filled(runner, run, tmp_path, ["a b c"])
        assert (await tokenized(runner, tmp_path, ["red " * 20] * 100)).tokens == 1600
        run.gate.set()
        await waiting


async def test_a_client_of_tiny_texts_does_not_make_others_look_larger(tmp_path: Path) -> None:
    """A letter is three tokens with its frame; other texts do not have three tokens a letter for that."""
    run = GatedTokens()
    page = ["blue cat red dog"] * 16
    async with running(tmp_path, run) as runner:
        for _ in range(200):
            await tokenized(runner, tmp_path, ["a"] * 8)
        run.gate.clear()
        waiting = await filled(runner, run, tmp_path, ["a b c d e f g h i j"] * 34)
        await tokenized(runner, tmp_path, page)
        run.gate.set()
        await waiting


async def test_texts_that_are_dense_are_learnt(tmp_path: Path) -> None:
    """Where long texts have a token for every other letter, what does not fit is refused before it is tokenized."""
    run = GatedTokens()
    dense = ["aa " + "a b c d e " * 12]
    async with running(tmp_path, run) as runner:
        wide = fake_loaded_model(tmp_path / "wide", max_position_embeddings=512).tokenizer
        size = TextSize(1, len(dense[0]))
        for _ in range(200):
            await runner.tokenize(
                size,
                lambda: wide.singles(dense, Truncation.END),
                deadline=Deadline.after(30),
                priority=Priority.INTERACTIVE,
            )
        run.gate.clear()
        waiting = await filled(runner, run, tmp_path, ["a b c d e f g h i j"] * 30)
        with pytest.raises(Overloaded):
            await tokenized(runner, tmp_path, ["blue cat dog red sat on the mat"] * 18)
        run.gate.set()
        await waiting


async def test_a_bulk_jobs_texts_are_not_in_front_of_an_interactive_requests(tmp_path: Path) -> None:
    """Each lane is tokenized by a thread of its own."""
    may_end = threading.Event()
    large = TextSize(1, 100_000)
    tokenizer = fake_loaded_model(tmp_path).tokenizer

    def work() -> Tokenized:
        return tokenizer.singles(["cat"], Truncation.END)

    def slow_work() -> Tokenized:
        may_end.wait()
        return work()

    async with running(tmp_path, GatedTokens()) as runner:
        deadline = Deadline.after(30)
        bulk = asyncio.create_task(runner.tokenize(large, slow_work, deadline=deadline, priority=Priority.BULK))
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await runner.tokenize(large, work, deadline=deadline, priority=Priority.INTERACTIVE)
        assert not bulk.done()
        may_end.set()
        await bulk
