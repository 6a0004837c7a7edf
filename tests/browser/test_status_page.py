"""The status page in a real Chromium, before workers that a test moves: what people see of it, and hear."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.keys.records import Role
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers, RunningGateway
from gateway.testing.keys import KeyFile
from mesh.clients.gpu import GpuDevice, GpuStatus, Mig
from mesh.errors import CircuitOpen
from mesh.resilience import BreakerSnapshot, BreakerState, Cause
from tests.browser.conftest import OpenPage

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOON_MS = 15_000
_OPEN = BreakerSnapshot(BreakerState.OPEN, 3.0, 5, 2.4, 1, 2.4, "5 failures in a row", Cause.CONSECUTIVE_FAILURES)


def row(page: Any, hop: str) -> Any:
    """A hop's row, found as a screen reader finds it."""
    return page.get_by_role("article", name=hop, exact=True)


async def until_text(locator: Any, text: str | re.Pattern[str]) -> None:
    """Wait until an element says so."""
    await locator.filter(has_text=text).wait_for(timeout=SOON_MS)


async def until_live(page: Any) -> None:
    """Wait for the first snapshot."""
    await until_text(page.locator("#live"), "live")


async def test_every_hop_is_drawn_with_all_that_is_known_of_it(
    gateway: RunningGateway, peers: FakePeers, open_page: OpenPage
) -> None:
    """Endpoint, breaker, probe, load, latency and model of each, in the accessibility tree as on the screen."""
    page = await open_page(gateway.url + "/")
    await until_live(page)
    assert await page.get_by_role("heading", level=1).inner_text() == "Everything serves."
    assert await page.locator(".hop h3").all_inner_texts() == ["embedding", "reranking", "chunking", "gpu", "llm"]
    peers.embedder.hop.times += [0.002, 0.004, 0.25]
    await until_text(row(page, "embedding"), "250 ms")
    tree = await row(page, "embedding").aria_snapshot()
    for said in ("embedding", "serving", "127.0.0.1:1", "3 in flight", "breaker", "closed for", "3 of 64", "p50", "p99",
                 "all-MiniLM-L6-v2", "offline default"):  # fmt: skip
        assert said in tree, tree
    assert "demo model" in await row(page, "llm").inner_text()
    assert await row(page, "embedding").locator(".spark .median, .spark .dots").count() == 2
    assert "up to 250 ms" in await row(page, "embedding").locator(".scale").inner_text()
    facts = await page.locator("#gateway").inner_text()
    assert "0 of 2048" in facts


async def test_a_hop_that_goes_and_comes_back_is_told_without_colour(
    gateway: RunningGateway, peers: FakePeers, open_page: OpenPage
) -> None:
    """By word, by shape, by the switch on its line, by the title, and each change once in the log."""
    page = await open_page(gateway.url + "/")
    await until_live(page)
    closed = await page.locator(".hop").first.locator(".lever").evaluate("each => getComputedStyle(each).transform")
    peers.embedder.hop.health = "UNREACHABLE"
    peers.embedder.hop.reason = "Connection refused."
    peers.embedder.hop.breaker = _OPEN
    await until_text(row(page, "embedding").locator(".word"), "unreachable")
    assert await page.get_by_role("heading", level=1).inner_text() == "embedding does not serve. The other hops do."
    assert (await page.title()).startswith("embedding does not serve")
    said = await row(page, "embedding").inner_text()
    assert "open for 3 s, tries in 2 s" in said
    assert said.count("Connection refused.") == 1
    assert await row(page, "embedding").locator(".state .shape rect").count() == 1
    await page.wait_for_timeout(400)
    opened = await page.locator(".hop").first.locator(".lever").evaluate("each => getComputedStyle(each).transform")
    assert opened != closed
    log = page.get_by_role("log")
    assert "embedding: unreachable, was serving" in await log.inner_text()
    peers.embedder.hop.health, peers.embedder.hop.reason = "SERVING", ""
    peers.embedder.hop.breaker = FakePeers().embedder.hop.breaker
    await until_text(log, "embedding: serving, was unreachable")
    assert await page.get_by_role("heading", level=1).inner_text() == "Everything serves."
    assert await log.locator("li").count() == 3


async def test_what_changes_all_the_time_is_not_said_aloud(
    gateway: RunningGateway, peers: FakePeers, open_page: OpenPage
) -> None:
    """Figures move every second; the log, the only live part, stays still, and so do focus and open details."""
    page = await open_page(gateway.url + "/")
    await until_live(page)
    details = row(page, "reranking").locator("summary")
    await details.focus()
    await page.keyboard.press("Enter")
    assert "leads to" in await row(page, "reranking").inner_text()
    live = await page.evaluate("[...document.querySelectorAll('[aria-live],[role=log],[role=status],[role=alert]')]"
                               ".filter(each => each.checkVisibility()).map(each => each.id)")  # fmt: skip
    assert live == ["log"]
    before = await page.get_by_role("log").inner_text()
    up = await page.locator("#gateway").inner_text()
    peers.reranker.hop.times += [0.1]
    await until_text(row(page, "reranking"), "100 ms")
    await page.wait_for_timeout(1200)
    assert await page.locator("#gateway").inner_text() != up
    assert await page.get_by_role("log").inner_text() == before
    assert await page.evaluate("document.activeElement.getAttribute('aria-label')") == "More about reranking"
    assert await row(page, "reranking").locator("details").get_attribute("open") is not None


async def test_one_endpoint_away_is_less_than_all(
    gateway: RunningGateway, peers: FakePeers, open_page: OpenPage
) -> None:
    """A hop that serves with an endpoint left out, or on probation, is neither well nor down."""
    peers.reranker.hop.ejected = True
    peers.writer.hop.breaker = BreakerSnapshot(BreakerState.HALF_OPEN, 1.0, 5, 0.0, 1, None, "")
    page = await open_page(gateway.url + "/")
    await until_live(page)
    assert await row(page, "reranking").locator(".word").inner_text() == "serving, an endpoint is left out"
    assert await row(page, "llm").locator(".word").inner_text() == "serving, on probation"
    verdict = await page.get_by_role("heading", level=1).inner_text()
    assert verdict == "Everything serves; reranking, llm not at full strength."


async def test_what_is_refused_is_told_with_its_reason(
    gateway: RunningGateway, peers: FakePeers, open_page: OpenPage
) -> None:
    """Also what was refused before anybody looked: how often, where, and what it means."""
    peers.embedder.error = CircuitOpen("Open.", hop="embedding", retry_after=1.0)
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as http:
        for _ in range(3):
            assert (await http.post("/v1/embeddings", json={"input": "x"})).status_code == 503
    page = await open_page(gateway.url + "/")
    await until_live(page)
    region = page.get_by_role("region", name="Refused in the last five minutes")
    said = await region.inner_text()
    assert "3" in said.split()
    assert "Circuit open on embedding · /v1/embeddings · status 503" in said
    assert "answered at once without waiting" in said


async def test_nothing_refused_and_no_gpu_are_said_plainly(gateway: RunningGateway, open_page: OpenPage) -> None:
    """An empty table or an empty bar would leave open whether it works."""
    page = await open_page(gateway.url + "/")
    await until_live(page)
    assert "Nothing." in await page.locator("#refused").inner_text()
    gpus = await page.get_by_role("region", name="GPU memory").inner_text()
    assert "No GPU. No NVIDIA driver is installed on this machine." in gpus


async def test_gpu_memory_is_a_bar_that_is_read_too(
    gateway: RunningGateway, peers: FakePeers, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Used of whole, as a meter with its words; busy, warm, and by how many processes."""
    gib = 2**30
    device = GpuDevice(0, "GPU-1", "NVIDIA H100", "0:1", 80 * gib, 20 * gib, 60 * gib, 37, 12, 51, 310.0, 700.0, 1900,
                       0, (), Mig(supported=False, enabled=False, instances=()), ())  # fmt: skip

    async def status(**_: Any) -> GpuStatus:
        return GpuStatus(1, (device,), "590.1", "13.0", "")

    monkeypatch.setattr(peers.gpu, "get_gpu_status", status)
    page = await open_page(gateway.url + "/")
    await until_live(page)
    meter = page.get_by_role("meter", name="Memory of GPU 0")
    assert await meter.get_attribute("aria-valuetext") == "20.0 GiB of 80.0 GiB"
    bar = await meter.locator("rect.used").bounding_box()
    whole = await meter.bounding_box()
    assert bar["width"] / whole["width"] == pytest.approx(0.25, abs=0.02)
    assert "37 % busy · 51 °C · 310 W · 0 processes" in await page.locator("#gpus").inner_text()


async def test_a_gateway_that_is_gone_is_told_and_comes_back(open_page: OpenPage) -> None:
    """What is shown is marked as old, and the page finds back by itself."""
    with RunningGateway(GatewaySettings(), FakePeers()) as gateway:
        page = await open_page(gateway.url + "/")
        await until_live(page)
    await until_text(page.locator("#live"), "trying again")
    assert "What you see is the last that was heard." in await page.get_by_role("heading", level=1).inner_text()
    assert await page.locator("body").get_attribute("data-stale") == "yes"
    assert await row(page, "embedding").locator(".word").inner_text() == "serving"
    with RunningGateway(GatewaySettings(), FakePeers(), port=int(gateway.url.rpartition(":")[2])):
        await until_live(page)
        assert await page.get_by_role("heading", level=1).inner_text() == "Everything serves."
        assert "Trying again." in await page.get_by_role("log").inner_text()
        await page.close()


async def test_a_gateway_with_keys_asks_for_one(peers: FakePeers, tmp_path: Path, open_page: OpenPage) -> None:
    """It says so, takes a key by keyboard, tells one of the other role, and keeps the right one in this tab alone."""
    book = KeyFile(tmp_path / "keys.json")
    inference, operator = book.add(Role.INFERENCE), book.add(Role.OPERATOR)
    with RunningGateway(GatewaySettings.model_validate({"keys": {"file": book.path}}), peers) as gateway:
        page = await open_page(gateway.url + "/")
        alert = page.get_by_role("alert")
        await until_text(alert, "This gateway asks for an API key.")
        assert "Enter an API key" in await alert.inner_text()
        for key in (inference, operator):
            await page.get_by_role("alert").get_by_role("button", name="Enter a key").focus()
            await page.keyboard.press("Enter")
            await page.keyboard.type(key)
            await page.keyboard.press("Enter")
            if key == inference:
                await until_text(page.get_by_role("alert"), "it needs the role operator")
        await until_live(page)
        assert await page.get_by_role("alert").count() == 0
        assert "Missing api key" in await page.get_by_role("region", name="Refused in the last five").inner_text()
        kept = await page.evaluate("JSON.stringify([localStorage, document.cookie, location.href])")
        assert operator not in kept
        assert operator not in await page.content()
        await page.goto(gateway.url + "/try")
        assert await page.locator("#key-box summary").inner_text() == "API key: in use"
        await page.locator("#key-box summary").click()
        await page.get_by_role("button", name="Forget").click()
        assert await page.evaluate("sessionStorage.length") == 0


async def test_what_is_wrong_with_the_gateways_own_files_is_told(
    peers: FakePeers, tmp_path: Path, open_page: OpenPage
) -> None:
    """Keys that cannot be read again go on, until a restart: whoever looks is told before it."""
    book = KeyFile(tmp_path / "keys.json")
    operator = book.add(Role.OPERATOR)
    with RunningGateway(GatewaySettings.model_validate({"keys": {"file": book.path}}), peers) as gateway:
        page = await open_page(gateway.url + "/")
        await page.get_by_role("button", name="Enter a key").click()
        await page.keyboard.type(operator)
        await page.keyboard.press("Enter")
        await until_live(page)
        assert not await page.locator("#gateway .why").is_visible()
        book.path.write_text("{")
        await until_text(page.locator("#gateway .why"), "it is not JSON")
        assert await page.locator("#gateway").get_attribute("data-state") == "warn"


async def test_a_phone_shows_all_of_it(gateway: RunningGateway, peers: FakePeers, open_page: OpenPage) -> None:
    """360 pixels wide, nothing is cut off and nothing scrolls sideways, also with long reasons and names."""
    peers.embedder.hop.health = "UNREACHABLE"
    peers.embedder.hop.reason = "ipv4:127.0.0.1:50051:" + "x" * 120
    page = await open_page(gateway.url + "/", viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    await until_live(page)
    for summary in await page.locator(".hop summary").all():
        await summary.tap()
    assert await page.evaluate("document.documentElement.scrollWidth") == 360
    cut = await page.evaluate(
        "[...document.querySelectorAll('main *')].filter(each => each.checkVisibility()"
        " && !each.closest('.hidden, svg') && each.getBoundingClientRect().right > 361)"
        ".map(each => each.className || each.tagName)"
    )
    assert cut == []


async def test_motion_stops_where_it_is_not_wanted(
    gateway: RunningGateway, peers: FakePeers, open_page: OpenPage
) -> None:
    """Calls flow along a line; with reduced motion they only stand on it."""
    for wanted, name in (("no-preference", "flow"), ("reduce", "none")):
        page = await open_page(gateway.url + "/", reduced_motion=wanted)
        await until_live(page)
        peers.embedder.hop.times += [0.01] * 50
        flow = page.locator(".hop[data-flow=yes] .flow").first
        await flow.wait_for(state="attached", timeout=SOON_MS)
        assert await page.locator(".flow").first.evaluate("each => getComputedStyle(each).animationName") == name
