"""What everybody needs of the pages, computed in a real Chromium: contrast, names, sizes, order."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gateway.testing import FakePeers, RunningGateway
from mesh.errors import CircuitOpen
from mesh.resilience import BreakerSnapshot, BreakerState, Cause
from tests.browser.conftest import OpenPage

pytestmark = pytest.mark.asyncio(loop_scope="module")

_PROBE = (Path(__file__).parent / "probe.js").read_text(encoding="utf-8")
READABLE, LARGE = 4.5, 3.0
"""WCAG's least contrast at level AA, of text and of large text."""
TARGET_PIXELS = 24
"""WCAG's least size of what is to be hit, unless it stands in running text."""


async def shown(open_page: OpenPage, gateway: RunningGateway, path: str, **context: Any) -> Any:
    """A page with all of its parts in view, hurt ones too."""
    page = await open_page(gateway.url + path, **context)
    if path == "/":
        await page.locator("#live[data-state=good]").wait_for()
        for summary in await page.locator(".hop summary").all():
            await summary.click()
    elif path == "/try":
        for part, result in (("embed", "table"), ("rerank", ".ranking"), ("ask", ".curl")):
            await page.locator(f"#{part} button[type=submit]").click()
            await page.locator(f"#{part} {result}").wait_for()
    else:
        await page.locator("details.operation").first.wait_for()
        await page.locator("details.operation summary").first.click()
    await page.evaluate(_PROBE)
    return page


@pytest.fixture(autouse=True)
def hurt(peers: FakePeers) -> None:
    """Every state at once."""
    peers.embedder.hop.health, peers.embedder.hop.reason = "UNREACHABLE", "Connection refused."
    peers.chunker.hop.breaker = BreakerSnapshot(BreakerState.OPEN, 3.0, 5, 2.4, 1, 2.4, "", Cause.CONSECUTIVE_FAILURES)
    peers.reranker.hop.ejected = True
    peers.gpu.hop.health = "UNKNOWN"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/try", "/docs"])
async def test_all_text_can_be_read(gateway: RunningGateway, open_page: OpenPage, path: str, scheme: str) -> None:
    """Every visible text stands out from what is behind it, in both colour schemes."""
    page = await shown(open_page, gateway, path, color_scheme=scheme)
    texts = await page.evaluate("probe.contrasts()")
    assert len(texts) > 20
    faint = [each for each in texts if each["ratio"] < (LARGE if each["large"] else READABLE)]
    assert faint == []


async def test_shapes_stand_out_as_text_does(gateway: RunningGateway, open_page: OpenPage) -> None:
    """What tells a state without words, at the contrast that WCAG asks of graphics."""
    for scheme in ("light", "dark"):
        page = await shown(open_page, gateway, "/", color_scheme=scheme)
        shapes = await page.evaluate("probe.shapes()")
        assert len(shapes) > 8
        assert [each for each in shapes if each["ratio"] < LARGE] == []


@pytest.mark.parametrize("path", ["/", "/try", "/docs"])
async def test_everything_that_can_be_used_has_a_name_and_a_size(
    gateway: RunningGateway, open_page: OpenPage, path: str
) -> None:
    """A screen reader can say it, and a thumb can hit it."""
    page = await shown(open_page, gateway, path, viewport={"width": 360, "height": 740}, is_mobile=True)
    controls = await page.evaluate("probe.controls()")
    assert len(controls) > 5
    assert [each for each in controls if not each["name"]] == []
    assert [each for each in controls if not each["inline"] and each["height"] < TARGET_PIXELS] == []


@pytest.mark.parametrize("path", ["/", "/try", "/docs"])
async def test_the_page_has_an_order(gateway: RunningGateway, open_page: OpenPage, path: str) -> None:
    """One main part and one first heading, no level left out, no id twice, and a language."""
    page = await shown(open_page, gateway, path)
    outline = await page.evaluate("probe.outline()")
    assert (outline["main"], outline["first_headings"], outline["language"]) == (1, 1, "en")
    assert outline["repeated_ids"] == []
    levels = outline["levels"]
    assert all(after - before <= 1 for before, after in pairwise(levels)), levels


@pytest.mark.parametrize("path", ["/", "/try"])
async def test_keys_alone_reach_everything_in_order(gateway: RunningGateway, open_page: OpenPage, path: str) -> None:
    """Tab goes through all that can be used, from top to bottom, visibly; the first stop leads past the rest."""
    page = await shown(open_page, gateway, path)
    await page.locator(".skip").focus()
    # Focus is drawn where keys moved it.
    await page.keyboard.press("Tab")
    await page.keyboard.press("Shift+Tab")
    wanted = await page.evaluate("probe.stops()")
    reached = []
    for _ in wanted:
        stop = await page.evaluate("probe.focused()")
        assert stop["visible"], stop
        reached.append(stop["label"])
        await page.keyboard.press("Tab")
    assert reached == wanted
    assert reached[0].startswith("Skip to")
    await page.locator(".skip").focus()
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "main"


async def test_a_failure_is_said_at_once(gateway: RunningGateway, peers: FakePeers, open_page: OpenPage) -> None:
    """As an alert, with what to do next."""
    page = await open_page(gateway.url + "/try")
    peers.embedder.error = CircuitOpen("The embedding service is failing.", hop="embedding", retry_after=3.0)
    await page.locator("#embed button[type=submit]").click()
    alert = page.get_by_role("alert")
    await alert.wait_for()
    said = await alert.inner_text()
    assert "The embedding service is failing." in said
    assert "See on the status page which worker is away" in said
    assert "status 503 · retry after 3 s · request " in said
