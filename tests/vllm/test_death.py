"""An engine that is killed while it writes: half an answer never looks whole, and it comes back by itself."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import openai
import pytest

from tests.vllm.stand import MODEL, PAGE, START_SECONDS, VllmMesh
from tests.vllm.test_leaving import BODY

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("victim", [VllmMesh.pid_of_the_door, VllmMesh.pid_of_the_core], ids=["its door", "its core"])
async def test_a_killed_engine_comes_back(
    mesh: VllmMesh, client: openai.AsyncOpenAI, victim: Callable[[VllmMesh], int]
) -> None:
    """A stream ends with an error, what comes meanwhile is refused as unavailable, and the page is known again."""
    body = {**BODY, "model": MODEL}
    stream = await client.chat.completions.create(**body)  # type: ignore[call-overload] # test data
    pieces = 0
    with pytest.raises(openai.APIError) as caught:
        async for chunk in stream:
            pieces += bool(chunk.choices and chunk.choices[0].delta.content)
            if pieces == 3:
                os.kill(victim(mesh), signal.SIGKILL)
    assert pieces >= 3
    assert caught.value.code == "engine_lost"
    answer, refusals = await answer_in_the_end(client)
    assert answer == PAGE[0]["answer"]
    assert refusals
    assert all(refused.status_code == 503 and "retry-after" in refused.response.headers for refused in refusals)


async def answer_in_the_end(client: openai.AsyncOpenAI) -> tuple[str | None, list[openai.APIStatusError]]:
    """Ask until there is an answer; it, and what was said until then."""
    refusals: list[openai.APIStatusError] = []
    async with asyncio.timeout(START_SECONDS):
        while True:
            try:
                done = await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": PAGE[0]["question"]}], temperature=0
                )
            except openai.APIStatusError as refused:
                refusals.append(refused)
                await asyncio.sleep(0.25)
            else:
                return done.choices[0].message.content, refusals
