"""One mesh in containers for the whole session, built and started by the script that users run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from ops.docker.images import DEFAULT_BASE
from tests.containers.stack import Stack, why_skipped

ALIAS = "text-embedding-3-small"


@dataclass(frozen=True)
class Started:
    """The running mesh, and what its start printed."""

    stack: Stack
    words: str


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """The whole mesh with its default models, every capability serving; one setting comes from the environment."""
    if reason := why_skipped(os.environ.get("MESH_BASE_IMAGE") or DEFAULT_BASE):
        pytest.skip(f"no containers here: {reason}")
    stack = Stack.make(tmp_path_factory.mktemp("containers"), EMBEDDING_MODEL_ALIASES=ALIAS)
    try:
        result = stack.start()
        assert result.returncode == 0, result.stdout + result.stderr
        yield Started(stack, result.stdout)
        stopped = stack.stop()
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    finally:
        stack.stop()
        stack.forget()


@pytest.fixture(scope="session")
def stack(started: Started) -> Stack:
    """The running mesh."""
    return started.stack


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    """An HTTP client of the gateway."""
    with httpx.Client(base_url=stack.url, timeout=60.0, trust_env=False) as client:
        yield client
