"""The worker's end of a child process: start it, give it documents, hear its events, end it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Self

from gpu_services.chunking.events import (
    MAX_FRAME_BYTES,
    ChildSetup,
    Event,
    Finished,
    Order,
    Ready,
    Refused,
    decode_event,
    encode_order,
)
from gpu_services.chunking.work_watch import WorkWatch, cpu_seconds
from mesh.errors import Internal, InvalidRequest, MeshError, PayloadTooLarge, Unavailable
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

_START_SECONDS = 90.0
_LAST_WORDS_SECONDS = 1.0
_BEAT_SECONDS = 1.0
_KEPT_STDERR = 4096
# What a child inherits of the environment. The worker's secrets (keys, tokens) do not belong beside a hostile document.
_INHERITED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "TZ",
    "LD_LIBRARY_PATH",
    "HF_HOME",
    "HF_HUB_CACHE",
    "XDG_CACHE_HOME",
)
# Refusals that come before any parser has seen the document. After every other one the child is not used again.
_HARMLESS = {
    "DOCUMENT_EMPTY",
    "DOCUMENT_ENCODING",
    "DOCUMENT_ENCRYPTED",
    "DOCUMENT_TOO_MANY_PAGES",
    "DOCUMENT_TYPE_MISMATCH",
    "DOCUMENT_TYPE_UNSUPPORTED",
    "DOCUMENT_UNPACKS_TOO_LARGE",
}
# What Python, C++ and Rust say before they end for want of memory.
_OUT_OF_MEMORY = (b"MemoryError", b"bad_alloc", b"memory allocation of")


class _StuckError(Exception):
    """The child has stopped working."""


class Child:
    """One child process. It does one document at a time; after a failure it is not used again."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._stderr = b""
        self._draining = asyncio.create_task(self._drain_stderr())
        self._working = False
        self._killed = False
        self.documents = 0
        self.ready: Ready | None = None

    @classmethod
    async def start(cls, setup: ChildSetup) -> Self:
        """Start a child and wait until it is warm and locked in.

        Raises:
            Unavailable: it did not become ready; the log has its last words.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "gpu_services.chunking.child",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=child_environment(os.environ),
                start_new_session=True,  # the terminal's Ctrl-C is for the worker, which ends its children itself
            )
        except OSError as error:
            raise Unavailable(
                f"No process can be started to open documents ({error.strerror}); the machine has to have more to "
                "spare.",
                reason="CHILD_DOES_NOT_START",
                retry_after=5.0,
            ) from error
        child = cls(process)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await child._send(encode_order(replace(setup, parent_pid=os.getpid())))
                event = await child._read()
            if not isinstance(event, Ready):
                raise ValueError("The first event is not Ready.")
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
            await child.close()
            log.error("a child process did not start", extra=fields(stderr=child._last_words()))
            raise Unavailable(
                "The process that opens documents does not start; the worker's log has its last words.",
                reason="CHILD_DOES_NOT_START",
                retry_after=5.0,
            ) from error
        except BaseException:
            await child.close()
            raise
        child.ready = event
        return child

    @property
    def usable(self) -> bool:
        """Whether it can take a document. One that was told to end cannot, though it may still have spoken since."""
        return self._process.returncode is None and not self._working and not self._killed

    async def events(self, order: Order, *, seconds: float) -> AsyncGenerator[Event, None]:
        """The events of one document, up to and including Finished or Refused.

        Only time in which the child is waited for counts against ``seconds``: a slow reader of the chunks costs the
        document nothing. A child that dies, talks nonsense, takes too long or stops working is Refused with the
        reason, and killed.
        """
        self._working = True
        loop = asyncio.get_running_loop()
        left = seconds
        try:
            await self._send(encode_order(order))
            while True:
                asked = loop.time()
                event = await self._await_event(left)
                left -= loop.time() - asked
                if isinstance(event, Finished | Refused):
                    if isinstance(event, Refused) and event.traceback:
                        log.error("a document failed by a fault here", extra=fields(traceback=event.traceback))
                    self._working = isinstance(event, Refused) and event.error.reason not in _HARMLESS
                    yield event
                    return
                yield event
        except TimeoutError:
            yield Refused(
                PayloadTooLarge(
                    f"The document takes longer than the {order.limits.max_seconds:.0f} s that one may; "
                    "split it and send the parts.",
                    reason="DOCUMENT_TIMEOUT",
                )
            )
        except _StuckError:
            log.warning("a child process has stopped working on a document")
            yield Refused(
                PayloadTooLarge(
                    "The process that opened the document stopped working on it and was ended; send it again, and "
                    "where that fails too, save it with another program first.",
                    reason="DOCUMENT_STUCK",
                )
            )
        except (OSError, ValueError, asyncio.IncompleteReadError):
            # It is waited for before it is killed: killing what is already dead loses how it died.
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_SECONDS):
                    await self._process.wait()
            await self.close()
            yield Refused(self._cause_of_death(order))
        finally:
            if self._working:
                self.kill()

    async def _await_event(self, seconds: float) -> Event:
        """The next event. Raises TimeoutError, or _StuckError where the child does nothing for it."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + seconds
        watch = WorkWatch(loop.time)
        reading = asyncio.ensure_future(self._read())
        try:
            while True:
                left = give_up - loop.time()
                done, _ = await asyncio.wait({reading}, timeout=max(0.0, min(left, _BEAT_SECONDS)))
                if done:
                    return reading.result()
                if left <= _BEAT_SECONDS:
                    raise TimeoutError
                if watch.stuck(cpu_seconds(self._process.pid)):
                    raise _StuckError
        finally:
            reading.cancel()

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._killed = True
        if self._process.returncode is None:
            with suppress(ProcessLookupError):  # it may end between the two lines
                self._process.kill()

    async def close(self) -> None:
        """End it and collect what is left of it."""
        self.kill()
        await self._process.wait()
        await self._draining

    async def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101 - made with a pipe
        self._process.stdin.write(line)
        await self._process.stdin.drain()

    async def _read(self) -> Event:
        assert self._process.stdout is not None  # noqa: S101 - made with a pipe
        length = int.from_bytes(await self._process.stdout.readexactly(4), "big")
        if length > MAX_FRAME_BYTES:
            raise ValueError("A child's frame is too long.")
        return decode_event(await self._process.stdout.readexactly(length))

    async def _drain_stderr(self) -> None:
        """Keep the last words only: a document that makes a library complain a million times fills no log."""
        assert self._process.stderr is not None  # noqa: S101 - made with a pipe
        while block := await self._process.stderr.read(_KEPT_STDERR):
            self._stderr = (self._stderr + block)[-_KEPT_STDERR:]

    def _last_words(self) -> str:
        """For the log, as long as it has seen no document: afterwards these may be a document's words."""
        return self._stderr.decode("utf-8", "replace")

    def _cause_of_death(self, order: Order) -> MeshError:
        """What killed it says what the document did. It is never the worker's failure: that would open breakers."""
        code = self._process.returncode
        out_of_memory = any(words in self._stderr for words in _OUT_OF_MEMORY)
        log.warning(
            "a document ended its child process", extra=fields(exit_code=code, said_out_of_memory=out_of_memory)
        )
        if code == -signal.SIGXCPU:
            return PayloadTooLarge(
                f"The document takes more than the {order.limits.max_seconds:.0f} s of computing that one may; "
                "split it and send the parts.",
                reason="DOCUMENT_TIMEOUT",
            )
        if code == -signal.SIGKILL or out_of_memory:
            return PayloadTooLarge(
                "The process that opened the document was ended by the system, most likely for its memory; "
                "send a smaller part.",
                reason="DOCUMENT_MEMORY",
            )
        if code is not None and code < 0:
            return InvalidRequest(
                "The document breaks the library that reads it; save it again with another program and send that.",
                reason="DOCUMENT_DAMAGED",
            )
        return Internal("The process that opened the document ended by itself; the worker's log has its exit code.")


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: no secrets, no hub, one thread per library."""
    kept = {name: environ[name] for name in _INHERITED if name in environ}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "PYTHONDONTWRITEBYTECODE": environ.get("PYTHONDONTWRITEBYTECODE", ""),
        "PYTHONUTF8": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": environ.get("OMP_NUM_THREADS", "1"),
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MALLOC_ARENA_MAX": "2",
    }
