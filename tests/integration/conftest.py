"""One mesh for the whole session, started and stopped by the scripts that users run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from ops.local.ports import is_free
from ops.local.processes import marked
from ops.local.record import Record
from ops.local.testing import LocalMesh

STARTED_ELSEWHERE = ("embedding", "reranking", "gpu-services", "llm")
_URLS = {
    "embedding": "EMBEDDING_SERVICE_URL",
    "reranking": "RERANKING_SERVICE_URL",
    "gpu-services": "GPU_SERVICE_URL",
    "llm": "LLM_SERVICE_URL",
}

MakeMesh = Callable[..., LocalMesh]


@pytest.fixture(scope="session")
def first_words() -> list[str]:
    """What the session's start printed, for the tests that read it."""
    return []


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory, first_words: list[str]) -> Iterator[LocalMesh]:
    """The whole mesh with its default models, every capability serving."""
    started = LocalMesh.make(tmp_path_factory.mktemp("mesh"))
    result = started.start()
    try:
        assert result.returncode == 0, result.stdout + result.stderr
        first_words.append(result.stdout)
        yield started
    finally:
        record = Record.read(started.layout.record)
        stopped = started.stop()
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert record is not None
    assert marked(record.run_id) == []
    assert all(is_free("127.0.0.1", port) for port in started.ports)


@pytest.fixture(scope="session")
def http(mesh: LocalMesh) -> Iterator[httpx.Client]:
    """An HTTP client of the gateway."""
    with httpx.Client(base_url=mesh.url, timeout=60.0, trust_env=False) as client:
        yield client


@pytest.fixture
def small_mesh(mesh: LocalMesh, tmp_path: Path) -> Iterator[MakeMesh]:
    """Makes meshes of a gateway and the workers named in ``own``; the session's mesh serves the rest."""
    with ExitStack() as stack:

        def make(*own: str, **variables: str) -> LocalMesh:
            elsewhere = {_URLS[worker]: mesh.target(worker) for worker in STARTED_ELSEWHERE if worker not in own}
            made = LocalMesh.make(tmp_path / f"mesh-{len(list(tmp_path.iterdir()))}", **{**elsewhere, **variables})
            stack.callback(made.stop)
            return made

        yield make
