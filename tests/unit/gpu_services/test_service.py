"""What a request for chunks goes through, with a child that is a script."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpu_services.chunking.events import Event, Finished, Order, Progress, Refused
from gpu_services.chunking.service import ChunkingService, Done, Header
from gpu_services.settings import GpuServicesSettings
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.docling.chunks import Chunk
from mesh.errors import InvalidRequest, MeshError, Overloaded, PayloadTooLarge, Unavailable

pytest.importorskip("tokenizers", reason="the chunking worker's environment has tokenizers")

CHUNK = Chunk(index=0, text="t", tokens=3, contextualized_text="t")


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """A model's folder with a tokenizer of three words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path / "tiny-model"
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    return folder


class _Worker:
    """A started service over one scripted child."""

    def __init__(self, child_class: Any, tokenizer_folder: Path, script: Sequence[Event], **settings: Any) -> None:
        self.spool = tokenizer_folder.parent / "spool"
        self.spool.mkdir()
        loaded = GpuServicesSettings.load(
            {}, tokenizers=(str(tokenizer_folder),), spool_path=str(self.spool), pdf_pipeline="native", **settings
        )
        self.child = child_class(script)

        async def start(_: object) -> Any:
            return self.child

        self.service = ChunkingService(loaded.chunking(), start)

    async def run(self, header: Header, *frames: bytes) -> list[Any]:
        """Start, send one document, and give the answers."""
        await self.service.start()
        async with self.service.admitted(header, Deadline.after(5), Priority.INTERACTIVE) as job:
            for frame in frames:
                await job.write(frame)
            return [answer async for answer in job.answers()]


async def test_a_document_goes_through_the_child_and_comes_back_with_its_finish(
    scripted_child: Any, tokenizer_folder: Path, finished: Finished
) -> None:
    """Answers keep their order, the finish knows the upload, and nothing is left on the disk."""
    worker = _Worker(scripted_child, tokenizer_folder, [Progress(1, 2), CHUNK, replace(finished, chunks=1)])
    answers = await worker.run(Header(filename="dir\\a.txt", max_tokens=20), b"one ", b"two")
    assert [type(answer) for answer in answers] == [Progress, Chunk, Done]
    done = answers[-1]
    assert (done.filename, done.size_bytes, done.found.chunks) == ("a.txt", 7, 1)
    assert done.sha256 == hashlib.sha256(b"one two").hexdigest()
    assert worker.child.orders[0].max_tokens == 20
    assert os.listdir(worker.spool) == []


@pytest.mark.parametrize(
    "header",
    [
        Header(filename="a.exe"),
        Header(chunker="semantic"),
        Header(tokenizer="other/model"),
        Header(max_tokens=15),
        Header(max_tokens=129),
        Header(size_bytes=2**40),
    ],
    ids=str,
)
async def test_a_header_that_cannot_work_is_refused_before_the_upload(
    scripted_child: Any, tokenizer_folder: Path, header: Header
) -> None:
    """Nothing is admitted, nothing written, no child bothered."""
    worker = _Worker(scripted_child, tokenizer_folder, [])
    with pytest.raises((InvalidRequest, PayloadTooLarge)):
        await worker.run(header, b"x")
    assert worker.child.orders == []
    assert os.listdir(worker.spool) == []


@pytest.mark.parametrize("name", ["", "docling", "docling-hybrid", "docling-hierarchical"])
async def test_chunkers_go_by_their_names_and_aliases(
    scripted_child: Any, tokenizer_folder: Path, finished: Finished, name: str
) -> None:
    """Only the hierarchical one leaves small neighbours apart."""
    worker = _Worker(scripted_child, tokenizer_folder, [finished])
    await worker.run(Header(chunker=name, tokenizer="tiny-model"), b"x")
    order = worker.child.orders[0]
    assert order.merge_peers is (name != "docling-hierarchical")
    assert order.max_tokens == 128


async def test_what_the_child_refuses_reaches_the_caller(scripted_child: Any, tokenizer_folder: Path) -> None:
    """The child's reason is the caller's error, and the document is deleted."""
    refusal = Refused(PayloadTooLarge("too many", reason="DOCUMENT_TOO_MANY_PAGES"))
    worker = _Worker(scripted_child, tokenizer_folder, [refusal])
    with pytest.raises(PayloadTooLarge) as refused:
        await worker.run(Header(), b"x")
    assert refused.value.reason == "DOCUMENT_TOO_MANY_PAGES"
    assert os.listdir(worker.spool) == []


async def test_a_harmless_refusal_leaves_the_child_alive(scripted_child: Any, tokenizer_folder: Path) -> None:
    """A document that was refused unopened ends nothing: the child is idle, warm and free."""
    refusal = Refused(InvalidRequest("not a PDF", reason="DOCUMENT_TYPE_MISMATCH"))
    worker = _Worker(scripted_child, tokenizer_folder, [refusal])
    with pytest.raises(InvalidRequest):
        await worker.run(Header(), b"x")
    assert not worker.child.killed
    assert worker.service.pool.free


async def test_a_refusal_does_not_end_the_document_that_has_the_child_next(
    scripted_child: Any, tokenizer_folder: Path, finished: Finished
) -> None:
    """The next in line gets the child of the refused document, which stays alive, and is done."""
    both_wait = asyncio.Event()

    class Child(scripted_child):  # type: ignore[misc]
        """Refuses b.txt, and reads the others unless it is ended before."""

        async def events(self, order: Order, *, seconds: float) -> AsyncGenerator[Event, None]:
            if order.filename == "b.txt":
                await both_wait.wait()
                yield Refused(InvalidRequest("a password", reason="DOCUMENT_ENCRYPTED"))
                return
            yield CHUNK
            for _ in range(20):
                await asyncio.sleep(0)
            yield Refused(PayloadTooLarge("ended", reason="DOCUMENT_MEMORY")) if self.killed else finished

    worker = _Worker(Child, tokenizer_folder, [])
    await worker.service.start()

    async def send(filename: str) -> list[Any]:
        async with worker.service.admitted(Header(filename=filename), Deadline.after(5), Priority.INTERACTIVE) as job:
            await job.write(b"x")
            if filename == "c.txt":
                asyncio.get_running_loop().call_soon(both_wait.set)  # in line by the time that this runs
            return [answer async for answer in job.answers()]

    refused = asyncio.create_task(send("b.txt"))
    while worker.service.pool.free:
        await asyncio.sleep(0)
    assert [type(answer) for answer in await send("c.txt")] == [Chunk, Done]
    with pytest.raises(InvalidRequest):
        await refused
    assert not worker.child.killed


@pytest.mark.parametrize("frames", [(), (b"x" * (2**20 + 1),)], ids=["empty", "a frame too long"])
async def test_an_upload_that_is_wrong_is_refused(
    scripted_child: Any, tokenizer_folder: Path, frames: tuple[bytes, ...]
) -> None:
    """An empty document and a frame over 1 MiB never reach a child."""
    worker = _Worker(scripted_child, tokenizer_folder, [])
    with pytest.raises(InvalidRequest):
        await worker.run(Header(), *frames)
    assert worker.child.orders == []


async def test_leaving_a_job_ends_the_child_that_works_for_it(scripted_child: Any, tokenizer_folder: Path) -> None:
    """A caller who goes away after the first chunk leaves no work behind."""
    worker = _Worker(scripted_child, tokenizer_folder, [CHUNK, CHUNK])
    await worker.service.start()
    async with worker.service.admitted(Header(), Deadline.after(5), Priority.INTERACTIVE) as job:
        await job.write(b"x")
        answers = job.answers()
        assert await anext(answers) == CHUNK
    assert worker.child.killed
    await answers.aclose()


async def test_before_the_start_it_is_unavailable_and_a_bad_tokenizer_keeps_it_so(
    scripted_child: Any, tokenizer_folder: Path
) -> None:
    """A capability without its tokenizer says so instead of serving."""
    (tokenizer_folder / "tokenizer.json").write_text("{}")
    worker = _Worker(scripted_child, tokenizer_folder, [])
    with pytest.raises(MeshError, match="tokenizer"):
        await worker.service.start()
    with pytest.raises(Unavailable):
        worker.service.pool  # noqa: B018 - asking is what is refused


async def test_the_canary_leaves_room_for_documents(
    scripted_child: Any, tokenizer_folder: Path, finished: Finished
) -> None:
    """It chunks a document of our own when a child is free and steps back when none is."""
    worker = _Worker(scripted_child, tokenizer_folder, [CHUNK, finished])
    await worker.service.start()
    await worker.service.canary()
    assert len(worker.child.orders) == 1
    async with worker.service.pool.child(Deadline.after(5), Priority.BULK):
        with pytest.raises(Overloaded):
            await worker.service.canary()
