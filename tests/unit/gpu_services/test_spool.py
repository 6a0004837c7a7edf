"""Uploads go to the disk and leave nothing behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from pathlib import Path

import pytest

from gpu_services.chunking.spool import Spool
from mesh.errors import InvalidRequest, PayloadTooLarge


async def test_an_upload_is_on_the_disk_with_its_hash_until_the_block_is_left(tmp_path: Path) -> None:
    """What was written is there, and then it is gone with its folder."""
    async with Spool(str(tmp_path), max_bytes=100) as spool:
        await spool.write(b"one ")
        await spool.write(b"two")
        assert spool.finish() == hashlib.sha256(b"one two").hexdigest()
        assert spool.path.read_bytes() == b"one two"
        assert spool.path.stat().st_mode & 0o077 == 0
    assert os.listdir(tmp_path) == []


async def test_an_upload_over_the_limit_is_refused_in_its_middle(tmp_path: Path) -> None:
    """The frame that goes over is not written, and the folder is deleted."""
    async with Spool(str(tmp_path), max_bytes=5) as spool:
        await spool.write(b"12345")
        with pytest.raises(PayloadTooLarge):
            await spool.write(b"6")
        assert spool.path.stat().st_size == 5
    assert os.listdir(tmp_path) == []


async def test_an_empty_upload_is_refused(tmp_path: Path) -> None:
    """No bytes are no document."""
    async with Spool(str(tmp_path), max_bytes=5) as spool:
        with pytest.raises(InvalidRequest) as refused:
            spool.finish()
    assert refused.value.reason == "DOCUMENT_EMPTY"


async def test_an_upload_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """However the block is left, the document is deleted."""

    async def fail() -> None:
        async with Spool(str(tmp_path), max_bytes=5) as spool:
            await spool.write(b"123")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert os.listdir(tmp_path) == []


async def test_a_write_that_outlives_its_request_touches_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled write goes on in its thread: the file stays its own until it is done, and is closed then."""
    begun, go_on = threading.Event(), threading.Event()
    files: list[int] = []
    write = os.write

    def slow(file: int, data: bytes) -> int:
        files.append(file)
        begun.set()
        assert go_on.wait(10)
        return write(file, data[:1])

    monkeypatch.setattr(os, "write", slow)
    async with Spool(str(tmp_path), max_bytes=5) as spool:
        writing = asyncio.create_task(spool.write(b"12345"))
        assert await asyncio.to_thread(begun.wait, 10)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    assert os.listdir(tmp_path) == []
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)  # gets the lowest number that is free
    try:
        go_on.set()
        await asyncio.get_running_loop().shutdown_default_executor()  # the thread has ended
        assert os.fstat(other).st_size == 0
        assert len(files) == 1
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(files[0])
    finally:
        os.close(other)
