"""The try page in a real Chromium: every capability, by mouse, keyboard and drop, and what it says when one fails."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.testing import FakePeers, RunningGateway
from mesh.errors import Overloaded, Unavailable
from tests.browser.conftest import OpenPage

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOON_MS = 15_000
_DROP = """(text) => {
  const files = new DataTransfer();
  files.items.add(new File([text], "notes.md", { type: "text/markdown" }));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    const options = { dataTransfer: files, bubbles: true, cancelable: true };
    document.getElementById("drop").dispatchEvent(new DragEvent(kind, options));
  }
}"""


async def pressed(page: Any, trial: str, until: str) -> Any:
    """Press a trial's button and wait for a part of its result; returns the result."""
    await page.locator(f"#{trial} button[type=submit]").click()
    await page.locator(f"#{trial} {until}").first.wait_for(timeout=SOON_MS)
    return page.locator(f"#{trial} .result")


async def test_texts_become_vectors_and_their_likenesses(gateway: RunningGateway, open_page: OpenPage) -> None:
    """How many, how long, how like each other, as a table whose cells can be found by row and column."""
    page = await open_page(gateway.url + "/try")
    await page.get_by_label("Texts, one a line").fill("x\n\n  xy \n" + "long" * 80)
    result = await pressed(page, "embed", "table")
    assert "3 vectors of 4 numbers" in await result.inner_text()
    cells = [float(text.replace("−", "-")) for text in await result.locator("tbody td").all_inner_texts()]
    assert len(cells) == 9
    assert cells[0] == cells[4] == cells[8] == 1.0
    assert cells[2] == cells[6] < cells[1] == cells[3]
    assert await result.locator("tbody th").all_inner_texts() == ["1", "2", "3"]
    assert await result.locator(".stripes rect").count() == 12


async def test_documents_are_ranked_with_bars(gateway: RunningGateway, open_page: OpenPage) -> None:
    """Best first, each with its score as a meter and the line that it came from."""
    page = await open_page(gateway.url + "/try")
    await page.get_by_label("Question").first.fill("red green")
    await page.get_by_label("Documents, one a line").fill("blue\nred green\nred")
    result = await pressed(page, "rerank", ".ranking")
    places = await result.get_by_role("listitem").all_inner_texts()
    assert [place.split("\n")[0] for place in places] == ["1. red green", "2. red", "3. blue"]
    assert [await each.get_attribute("aria-valuetext") for each in await result.get_by_role("meter").all()] == [
        "1.000",
        "0.500",
        "0.000",
    ]


async def test_a_dropped_document_is_chunked_and_can_be_asked_about(
    gateway: RunningGateway, peers: FakePeers, open_page: OpenPage
) -> None:
    """Its chunks come with where they stood; the model is given those that are nearest to the question."""
    page = await open_page(gateway.url + "/try")
    assert await page.get_by_label("From the document above").is_disabled()
    await page.evaluate(_DROP, "one\ntwo\nthree\nfour\nfive\nsix")
    await page.locator("#chunk .curl").wait_for(timeout=SOON_MS)
    said = await page.locator("#chunk .result").inner_text()
    assert "notes.md: 1 page · 6 chunks" in said
    assert "1 · Title · page 1 · 3 tokens\none" in said.replace("\n\n", "\n")
    assert peers.chunker.calls[-1].arguments[0].filename == "notes.md"
    assert peers.chunker.calls[-1].arguments[0].max_tokens == 200
    assert await page.get_by_label("From notes.md (6 chunks)").is_checked()
    result = await pressed(page, "ask", ".passages")
    assert "4 passages of notes.md" in await result.inner_text()
    asked = peers.writer.calls[-1].arguments[0]
    assert asked.messages[0].content.startswith("Answer from these passages alone")
    assert asked.messages[1].content == "What happens when a worker crashes?"


async def test_pasted_text_is_chunked_instead_of_the_file(
    gateway: RunningGateway, peers: FakePeers, open_page: OpenPage
) -> None:
    """What was written last counts."""
    page = await open_page(gateway.url + "/try")
    await page.evaluate(_DROP, "from the file")
    await page.locator("#chunk .curl").wait_for(timeout=SOON_MS)
    await page.get_by_label("or paste text").fill("# Pasted\nwords")
    await page.locator("#chunk button[type=submit]").click()
    await page.locator("#chunk .facts", has_text="the pasted text").wait_for(timeout=SOON_MS)
    assert "# Pasted" in await page.locator("#chunk .chunks").inner_text()


async def test_an_answer_is_shown_while_it_is_written(
    gateway: RunningGateway, peers: FakePeers, open_page: OpenPage
) -> None:
    """Piece by piece; stopped, the work ends in the worker too."""
    peers.writer.gate = asyncio.Semaphore(2)
    page = await open_page(gateway.url + "/try")
    await page.locator("#ask button[type=submit]").click()
    await page.locator("#ask .answer", has_text="Hello").wait_for(timeout=SOON_MS)
    assert await page.locator("#ask .answer").get_attribute("data-writing") == "yes"
    assert await page.locator("#ask button[type=submit]").is_disabled()
    await page.get_by_role("button", name="Stop").last.click()
    await page.get_by_text("Stopped.").wait_for(timeout=SOON_MS)
    assert await asyncio.to_thread(peers.writer.closed.wait, 10)
    assert peers.writer.left_early
    assert await page.locator("#ask .answer").inner_text() == "Hello"


async def test_a_broken_answer_is_not_taken_for_whole(
    gateway: RunningGateway, peers: FakePeers, open_page: OpenPage
) -> None:
    """What came stays, and the page says that it is not all, and what to do."""
    peers.writer.break_with = Unavailable("The language model went away.", hop="llm")
    page = await open_page(gateway.url + "/try")
    await page.locator("#ask button[type=submit]").click()
    alert = page.get_by_role("alert")
    await alert.wait_for(timeout=SOON_MS)
    assert await page.locator("#ask .answer").inner_text() == "Hello!"
    said = await alert.inner_text()
    assert "The language model went away." in said
    assert "not whole" in said
    assert await page.locator("#ask .facts").count() == 0


@pytest.mark.parametrize("trial", ["embed", "rerank", "chunk", "ask"])
async def test_every_trial_tells_a_refusal(
    gateway: RunningGateway, peers: FakePeers, open_page: OpenPage, trial: str
) -> None:
    """In each dialect the gateway's own sentence is found, with what to do next; the trial can be made again."""
    peers.fail(Overloaded("Too much at once.", retry_after=2.0))
    page = await open_page(gateway.url + "/try")
    await page.locator("#chunk-text").fill("text")
    await page.locator(f"#{trial} button[type=submit]").click()
    alert = page.locator(f"#{trial}").get_by_role("alert")
    await alert.wait_for(timeout=SOON_MS)
    said = await alert.inner_text()
    assert "Too much at once." in said
    assert "wait for a moment" in said
    assert "status 429" in said
    peers.fail(None)
    await pressed(page, trial, ".curl")
    assert await page.locator(f"#{trial}").get_by_role("alert").count() == 0


async def test_nothing_to_do_is_said_without_a_request(
    gateway: RunningGateway, peers: FakePeers, open_page: OpenPage
) -> None:
    """An empty form asks for what is missing."""
    page = await open_page(gateway.url + "/try")
    await page.locator("#embed-texts").fill(" \n ")
    await page.locator("#embed button[type=submit]").click()
    assert "Write at least one line." in await page.get_by_role("alert").inner_text()
    assert [call for call in peers.embedder.calls if call.arguments] == []


async def test_the_command_does_the_same_and_carries_no_key(gateway: RunningGateway, open_page: OpenPage) -> None:
    """As it stands in a shell, also with quotes in the text; the key is named by a variable."""
    page = await open_page(gateway.url + "/try")
    await page.evaluate("sessionStorage.setItem('mesh-api-key', 'mesh-secret-2')")
    await page.reload()
    await page.locator("#embed-texts").fill('it\'s $HOME "quoted"\nand `this`')
    await pressed(page, "embed", ".curl")
    command = await page.locator("#embed .curl pre").text_content()
    assert "mesh-secret-2" not in command
    assert '-H "authorization: Bearer $MESH_API_KEY"' in command
    shell = await asyncio.create_subprocess_exec("sh", "-c", command, stdout=asyncio.subprocess.PIPE)
    output, _ = await shell.communicate()
    assert json.loads(output)["usage"]["prompt_tokens"] == len('it\'s $HOME "quoted"') + len("and `this`")


async def test_a_documents_text_is_text(gateway: RunningGateway, peers: FakePeers, open_page: OpenPage) -> None:
    """Markup in a document or an answer is shown as it was written, and nothing in it runs."""
    evil = "<img src=x onerror=\"document.title='caught'\"><script>document.title='caught'</script>"
    peers.writer.pieces = (evil,)
    page = await open_page(gateway.url + "/try")
    await page.locator("#chunk-text").fill(evil)
    await pressed(page, "chunk", ".curl")
    await page.locator("#ask-document").uncheck()
    await pressed(page, "ask", ".curl")
    assert await page.locator("#ask .answer").inner_text() == evil
    assert evil in await page.locator("#chunk .chunks").inner_text()
    assert await page.title() == "Try · Torch Isolation Mesh"
