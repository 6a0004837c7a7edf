"""An upload's way to the disk: never whole in memory, never left behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from mesh.errors import InvalidRequest, PayloadTooLarge


class Spool:
    """A folder of one request's own, with the document's bytes in it. Leaving the block deletes it.

    >>> async with Spool(folder, max_bytes=1000) as spool:  # doctest: +SKIP
    ...     await spool.write(b"...")
    ...     spool.close()
    """

    def __init__(self, parent: str, *, max_bytes: int) -> None:
        self._parent = parent
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._writing = threading.Lock()
        self._closing = False
        self._file: int | None = None
        self.size = 0

    async def __aenter__(self) -> Self:
        self._folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="document-", dir=self._parent or None))
        self.path = self._folder / "document"
        self.output_path = self._folder / "output.json"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close_file()
        # Not awaited in a thread: a cancelled request must not be able to leave its document on the disk.
        shutil.rmtree(self._folder, ignore_errors=True)

    async def write(self, data: bytes) -> None:
        """Add the next bytes; raise PayloadTooLarge (DOCUMENT_TOO_LARGE) over the limit."""
        check_size(self.size + len(data), self._max_bytes)
        self.size += len(data)
        await asyncio.to_thread(self._write, data)

    def finish(self) -> str:
        """End the upload; its lower-case hex SHA-256. Raise InvalidRequest (DOCUMENT_EMPTY) where nothing came."""
        self._close_file()
        if self.size == 0:
            raise InvalidRequest("The document is empty.", reason="DOCUMENT_EMPTY")
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        try:
            with self._writing:
                self._hash.update(data)
                view = memoryview(data)
                while view and self._file is not None and not self._closing:
                    view = view[os.write(self._file, view) :]
        finally:
            self._close_where_due()

    def _close_file(self) -> None:
        self._closing = True
        self._close_where_due()

    def _close_where_due(self) -> None:
        """Close the file, unless a thread is writing: that one closes it when it is done.

        A cancelled write goes on in its thread. Were the file closed under it, its bytes would go to whichever file or
        socket gets the number next; were it waited for, the event loop would stand still.
        """
        if self._closing and self._writing.acquire(blocking=False):
            try:
                if self._file is not None:
                    os.close(self._file)
                    self._file = None
            finally:
                self._writing.release()


def check_size(size_bytes: int, max_bytes: int) -> None:
    """Raise PayloadTooLarge (DOCUMENT_TOO_LARGE) over the limit."""
    if size_bytes > max_bytes:
        raise PayloadTooLarge(
            f"The document has more than the {max_bytes // 2**20} MiB that are taken; send it in parts.",
            reason="DOCUMENT_TOO_LARGE",
        )
