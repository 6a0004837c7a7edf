"""The pages before the real mesh: a worker is killed while somebody looks and comes back, and everything is tried."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from ops.local.layout import CHECKOUT, Layout
from tests.browser.conftest import OpenPage
from tests.chaos.processes import REAL_EMBEDDING, Program, Replica, replicas
from tests.chaos.stand import Gateway, running_gateway, until_serving

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

# On two cores that others use too, measuring the models' engines for the first time takes a minute.
START_SECONDS = 300.0
SOON_MS = 60_000
DOCUMENT = CHECKOUT / "tests" / "data" / "documents" / "shared-mime-info-spec.pdf"
PROGRAMS = (
    REAL_EMBEDDING,
    Program("reranking", "reranking.v1.RerankingService", ("-m", "reranking_service")),
    Program("gpu-services", "chunking.v1.ChunkingService", ("-m", "gpu_services")),
    Program("llm", "llm.v1.LlmService", ("-m", "llm_service")),
)
HOPS = ("embedding", "reranking", "chunking", "gpu", "llm")
SCREENSHOTS = "MESH_BROWSER_SCREENSHOTS"
"""Names a folder that pictures of what the tests see are put into, for people to look at."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """A gateway before one real worker of each kind."""

    gateway: Gateway
    workers: Mapping[str, Replica]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(browser: Any) -> AsyncIterator[Mesh]:
    """All of it, serving; not started where there is no browser."""
    if not Layout.from_environment(os.environ).python("workers").exists():
        pytest.skip("The workers' environment is not installed: run scripts/test.sh browser")
    async with AsyncExitStack() as stack:
        workers = {}
        for program in PROGRAMS:
            (worker,) = await stack.enter_async_context(replicas(program, 1, serving=False))
            await worker.begin()
            workers[program.name] = worker
        targets = {name: worker.target for name, worker in workers.items()}
        gateway = await stack.enter_async_context(running_gateway(targets))
        for hop in HOPS:
            await until_serving(gateway, hop, START_SECONDS)
        yield Mesh(gateway, workers)


async def pictured(page: Any, name: str) -> None:
    """Keep what the page looks like, where somebody asks for it."""
    if folder := os.environ.get(SCREENSHOTS, ""):
        await page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


async def ask_again_and_again(http: httpx.AsyncClient) -> None:
    """What callers do meanwhile."""
    number = 0
    while True:
        number += 1
        texts = [f"text {number} {each}" for each in range(1 + number % 5)]
        await http.post("/v1/embeddings", json={"input": texts})
        if number % 4 == 0:
            await http.post("/v2/rerank", json={"query": "what", "documents": texts, "model": ""})
        await asyncio.sleep(0.1)


async def test_a_killed_worker_is_seen_and_so_is_its_return(mesh: Mesh, open_page: OpenPage) -> None:
    """Within seconds: the hop's word, its switch, what callers are refused with, each change once; then well again."""
    embedding = mesh.workers["embedding"]
    async with mesh.gateway.client() as http:
        callers = asyncio.create_task(ask_again_and_again(http))
        try:
            page = await open_page(mesh.gateway.url + "/", viewport={"width": 1360, "height": 860})
            hop = page.get_by_role("article", name="embedding", exact=True)
            await hop.locator(".word", has_text="serving").wait_for(timeout=SOON_MS)
            await page.locator("li.hop[data-flow=yes] .median").first.wait_for(timeout=SOON_MS, state="attached")
            assert await page.get_by_role("heading", level=1).inner_text() == "Everything serves."
            assert "offline default" in await hop.inner_text()
            await pictured(page, "serving")

            await embedding.kill()
            await hop.locator(".word", has_text="unreachable").wait_for(timeout=SOON_MS)
            heading = await page.get_by_role("heading", level=1).inner_text()
            assert heading == "embedding does not serve. The other hops do."
            assert "refused" in (await hop.locator(".endpoints .why").inner_text()).lower()
            await page.locator("li.hop[data-breaker=open] article", has_text="embedding").wait_for(timeout=SOON_MS)
            refused = page.get_by_role("region", name="Refused in the last five minutes")
            await refused.get_by_text("on embedding").first.wait_for(timeout=SOON_MS)
            await pictured(page, "killed")
            phone = await open_page(
                mesh.gateway.url + "/", viewport={"width": 360, "height": 740}, device_scale_factor=2, is_mobile=True,
                color_scheme="dark",
            )  # fmt: skip
            await phone.locator("#live[data-state=good]").wait_for(timeout=SOON_MS)
            await pictured(phone, "killed-phone-dark")

            await embedding.begin()
            await until_serving(mesh.gateway, "embedding", START_SECONDS)
            await hop.locator(".word", has_text="serving").wait_for(timeout=SOON_MS)
            await page.locator("li.hop[data-breaker=closed] article", has_text="embedding").wait_for(timeout=SOON_MS)
            assert await page.get_by_role("heading", level=1).inner_text() == "Everything serves."
            log = (await page.get_by_role("log").inner_text()).splitlines()
            assert sum("embedding: unreachable, was serving" in line for line in log) == 1
            assert any("embedding: serving, was" in line for line in log)
            await pictured(page, "back")
        finally:
            callers.cancel()


async def test_every_capability_can_be_tried(mesh: Mesh, open_page: OpenPage) -> None:
    """Texts that mean the like are alike, the right document is first, a PDF is cut, a question answered."""
    page = await open_page(mesh.gateway.url + "/try")
    await page.locator("#embed button[type=submit]").click()
    await page.locator("#embed table").wait_for(timeout=SOON_MS)
    cells = [float(text.replace("−", "-")) for text in await page.locator("#embed tbody td").all_inner_texts()]
    alike, apart = (cells[1], cells[11]), (cells[2], cells[3], cells[6], cells[7])
    assert min(alike) > max(apart)

    await page.locator("#rerank button[type=submit]").click()
    await page.locator("#rerank .ranking").wait_for(timeout=SOON_MS)
    ranked = await page.locator("#rerank .ranking li").all_inner_texts()
    assert "Bread" in ranked[-1]

    await page.locator("#chunk-file").set_input_files(DOCUMENT)
    await page.locator("#chunk .curl").wait_for(timeout=SOON_MS)
    assert "17 pages" in await page.locator("#chunk .facts").inner_text()
    assert "Shared MIME-info Database › 1. Introduction" in await page.locator("#chunk .chunks").inner_text()

    await page.locator("#ask-document").uncheck()
    await page.locator("#ask button[type=submit]").click()
    await page.locator("#ask .curl").wait_for(timeout=SOON_MS)
    assert "the supervisor restarts the worker." in await page.locator("#ask .answer").inner_text()
    assert "demo model" in await page.locator("#ask .result").inner_text()
    await pictured(page, "try")

    await page.locator("#ask-document").check()
    await page.locator("#ask-question").fill("Which desktops use the database?")
    await page.locator("#ask button[type=submit]").click()
    await page.locator("#ask .passages, #ask [role=alert]").first.wait_for(timeout=SOON_MS)
    said = await page.locator("#ask .result").inner_text()
    # The demo model's context holds four passages of this length; what it makes of them is no promise.
    assert "4 passages of shared-mime-info-spec.pdf" in said, said
