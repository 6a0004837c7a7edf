"""One mesh with a real vLLM for all tests of this folder: it takes a minute to start."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio

from tests.vllm.stand import CROWD, VllmMesh, running_mesh, why_not


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the engine is marked, and skipped with the reason where there is none."""
    folder = Path(__file__).parent
    reason = why_not()
    for item in items:
        if item.path.parent == folder:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.slow)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def mesh() -> AsyncIterator[VllmMesh]:
    """Gateway, worker and vLLM with the demo model, all serving, with room for a crowd."""
    with tempfile.TemporaryDirectory(prefix="vllm-") as directory:
        # A crowd comes through several gateways, each of which hands on some hundreds at once.
        room = {"LLM_MAX_CONCURRENT_REQUESTS": str(CROWD), "LLM_MAX_QUEUED_REQUESTS": str(CROWD)}
        async with running_mesh(Path(directory), {**room, "LLM_MAX_OUTPUT_TOKENS": "4000"}) as running:
            yield running


@pytest_asyncio.fixture(loop_scope="session")
async def client(mesh: VllmMesh) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's own SDK, as its documentation makes it, but for the address."""
    async with openai.AsyncOpenAI(
        base_url=f"{mesh.gateway.url}/v1", api_key="none", max_retries=0, timeout=180.0
    ) as made:
        yield made
