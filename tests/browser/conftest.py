"""A real Chromium, and pages in it whose mistakes fail the test that opened them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from gateway.settings import GatewaySettings
from gateway.testing import FakePeers, RunningGateway
from ops.local.browser import CHROMIUM_ARGUMENTS, find_chromium

OpenPage = Callable[..., Awaitable[Any]]
"""Opens a page; keywords are those of Playwright's browser contexts."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Any]:
    """Chromium, driven by Playwright; one for a module."""
    playwright = pytest.importorskip(
        "playwright.async_api", reason="Playwright is not installed here: run scripts/test.sh browser"
    )
    chromium = find_chromium()
    if chromium is None:
        pytest.skip(
            "There is no Chromium here: install Debian's package chromium, or run scripts/test.sh browser as root"
        )
    async with playwright.async_playwright() as driver:
        started = await driver.chromium.launch(executable_path=str(chromium), args=list(CHROMIUM_ARGUMENTS))
        yield started
        await started.close()


@pytest.fixture
def peers() -> FakePeers:
    """Stand-ins for the workers."""
    return FakePeers()


@pytest.fixture
def gateway(peers: FakePeers, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningGateway]:
    """A gateway before them, on a real socket."""
    monkeypatch.delenv("GATEWAY_CONFIG", raising=False)
    with RunningGateway(GatewaySettings(), peers) as running:
        yield running


class Mistakes(list[str]):
    """What a page did that it must not: scripts that failed, policies broken, requests to anywhere else."""

    def watch(self, page: Any, origin: str) -> None:
        """Collect those of a page."""
        page.on("pageerror", lambda error: self.append(f"script: {error}"))
        page.on("console", self._console)
        page.on("request", lambda request: self._request(request, origin))

    def _console(self, said: Any) -> None:
        # An answer that is no success is told there too; pages are tested with those.
        if said.type in ("error", "warning") and "Failed to load resource" not in said.text:
            self.append(f"console: {said.text}")

    def _request(self, request: Any, origin: str) -> None:
        if not request.url.startswith((origin, "data:", "blob:")):
            self.append(f"elsewhere: {request.url}")


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(browser: Any) -> AsyncIterator[OpenPage]:
    """Opens pages, and fails the test at its end where one of them made a mistake."""
    mistakes = Mistakes()
    async with AsyncExitStack() as stack:

        async def opened(url: str, **context: Any) -> Any:
            fresh = await browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context})
            stack.push_async_callback(fresh.close)
            page = await fresh.new_page()
            origin = "/".join(url.split("/")[:3])
            mistakes.watch(page, origin)
            await page.goto(url)
            return page

        yield opened
    assert mistakes == []
