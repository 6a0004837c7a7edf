"""A prompt of megabytes is counted beside everybody else's answers, in real time."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from llm_service.generation import Generation

tokenizers = pytest.importorskip("tokenizers", reason="counts the prompt's tokens")

from llm_service.meter import PromptMeter  # noqa: E402 - needs tokenizers

WORDS = 1_000_000


async def test_the_loop_turns_while_a_long_prompt_is_counted(tmp_path: Path) -> None:
    """Nobody else's tokens wait for it: the longest pause is a small part of what the counting takes."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "word": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    meter = PromptMeter(tmp_path / "tokenizer.json", 0)
    request = Generation(prompt="word " * WORDS)
    began = last = time.monotonic()
    longest = 0.0
    counting = asyncio.create_task(meter.count(request))
    while not counting.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert await counting == WORDS
    assert longest < (last - began) / 3
