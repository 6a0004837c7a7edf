"""A worker behind TLS, and clients with certificates of their own, for the tests of this folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from mesh.clients import AsyncEmbeddingServiceClient, ClientTls
from mesh.endpoint import EndpointHealth
from mesh.hop import Hop
from mesh.serving import Capability, Worker
from mesh.testing import ScriptedEmbedding
from mesh.testing.server import worker_settings
from mesh.tls.access import Access
from mesh.tls.certificates import DAY_SECONDS, TlsFiles
from mesh.tls.identity import Identity, Watching
from mesh.tls.server import ServerTls
from ops.tls.testing import Office

SERVER = "embedding-services"
QUICK = Watching(check_seconds=0.05)
"""Files are looked at often, so that a test need not wait."""


@asynccontextmanager
async def serve_tls(
    files: TlsFiles,
    *,
    capabilities: Sequence[Capability] | None = None,
    rules: Mapping[str, Sequence[str]] | None = None,
    watching: Watching = QUICK,
    reflection: bool | None = None,
) -> AsyncIterator[Worker]:
    """A worker with the certificate in ``files`` until the block is left. Its ``port`` is a free one."""
    tls = ServerTls(Identity(files, watching), Access(rules or {"gateway": ["*"]}), check_seconds=0.05)
    worker = Worker(worker_settings(reflection=reflection), capabilities or [ScriptedEmbedding().capability()], tls=tls)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


def at(days: tuple[float, float]) -> Watching:
    """As seen by a process that began while a certificate of these days was good."""
    offset = sum(days) / 2 * DAY_SECONDS
    return Watching(wall=lambda: time.time() + offset)


def client_tls(
    files: TlsFiles, *, ca: Path | None = None, server_name: str = SERVER, watching: Watching = QUICK
) -> ClientTls:
    """What a client shows: the certificate in ``files``; it trusts ``ca``, or the authority in there."""
    files = replace(files, ca=ca or files.ca)
    return ClientTls(files.ca, files.certificate, files.key, server_name=server_name, watching=watching)


def client_to(port: int, tls: ClientTls | None) -> AsyncEmbeddingServiceClient:
    """A client of the worker at ``port``."""
    return AsyncEmbeddingServiceClient(f"127.0.0.1:{port}", tls=tls)


async def told(hop: Hop, *, prefix: str = "TLS_", seconds: float = 12.0) -> EndpointHealth:
    """The hop's endpoint once its reason code begins with ``prefix``."""
    ends = time.monotonic() + seconds
    while not (found := hop.status().endpoints[0]).reason_code.startswith(prefix):
        assert time.monotonic() < ends, f"nothing was told but {found}"
        await asyncio.sleep(0.02)
    return found


def rotate(office: Office, *names: str) -> None:
    """Put new certificates in the place of those of ``names``."""
    for name in names:
        office.issue(name)
