"""Keys before a gateway on a real socket: the vendors' SDKs, the scripts, and a gateway that follows its file."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anthropic
import cohere
import httpx
import openai
import pytest
from cohere.core.api_error import ApiError

from gateway.keys.book import changing, revoked
from gateway.keys.form import id_of
from gateway.keys.records import Role
from gateway.settings import GatewaySettings
from gateway.testing import CHAT_MODEL, FakeGpu, FakeHop, FakePeers, RunningGateway
from gateway.testing.keys import KeyFile, bearer
from mesh.clients.gpu import GpuStatus
from mesh.deadline import Deadline
from mesh.settings import EXIT_SETTINGS
from ops.local.layout import CHECKOUT

MESSAGES: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def book(tmp_path: Path) -> KeyFile:
    """A file with one key that nobody uses."""
    made = KeyFile(tmp_path / "keys.json")
    made.add()
    return made


@pytest.fixture
def keys(book: KeyFile) -> dict[str, str]:
    """A key for each outcome."""
    return {
        "good": book.add(),
        "operator": book.add(Role.OPERATOR),
        "limited": book.add(max_concurrent_requests=1, requests_per_minute=1),
        "unknown": "none",
    }


@pytest.fixture
def gateway(book: KeyFile, keys: dict[str, str]) -> Iterator[RunningGateway]:
    """A gateway that asks for them."""
    settings = GatewaySettings.model_validate({"keys": {"file": book.path}})
    with RunningGateway(settings, FakePeers()) as running:
        yield running


def spent(gateway: RunningGateway, key: str) -> None:
    """Use up the one request that a limited key has."""
    assert httpx.get(f"{gateway.url}/v1/models", headers=bearer(key)).status_code == 200


def test_openais_sdk_reads_each_refusal(gateway: RunningGateway, keys: dict[str, str]) -> None:
    """By its own classes of errors; with a good key it does what it does."""
    spent(gateway, keys["limited"])
    for name, error in {
        "good": None,
        "unknown": openai.AuthenticationError,
        "operator": openai.PermissionDeniedError,
        "limited": openai.RateLimitError,
    }.items():
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=keys[name], max_retries=0) as client:
            if error is None:
                assert client.embeddings.create(model="", input="a").data
                assert client.chat.completions.create(model="", messages=MESSAGES).choices
                continue
            with pytest.raises(error) as refused:
                client.embeddings.create(model="", input="a")
            assert refused.value.code in {"invalid_api_key", "role_needed", "rate_limit_exceeded"}


@pytest.mark.parametrize("place", ["api_key", "auth_token"])
def test_anthropics_sdk_reads_each_refusal(gateway: RunningGateway, keys: dict[str, str], place: str) -> None:
    """In both places that it has for a key; a caller's own rate is no overloaded site."""
    spent(gateway, keys["limited"])
    for name, error in {
        "good": None,
        "unknown": anthropic.AuthenticationError,
        "operator": anthropic.PermissionDeniedError,
        "limited": anthropic.RateLimitError,
    }.items():
        credentials: Any = {place: keys[name]}
        with anthropic.Anthropic(base_url=gateway.url, max_retries=0, **credentials) as client:
            if error is None:
                assert client.messages.create(model=CHAT_MODEL, max_tokens=9, messages=MESSAGES).content
                continue
            with pytest.raises(error):
                client.messages.create(model=CHAT_MODEL, max_tokens=9, messages=MESSAGES)


def test_coheres_sdk_reads_each_refusal(gateway: RunningGateway, keys: dict[str, str]) -> None:
    """By their statuses."""
    spent(gateway, keys["limited"])
    for name, status in {"good": 200, "unknown": 401, "operator": 403, "limited": 429}.items():
        question: Any = {
            "model": "maxsim",
            "query": "q",
            "documents": ["a", "b"],
            "request_options": {"max_retries": 0},
        }
        with cohere.ClientV2(keys[name], base_url=gateway.url) as client:
            if status == 200:
                assert len(client.rerank(**question).results) == 2
                continue
            with pytest.raises(ApiError) as refused:
                client.rerank(**question)
        assert refused.value.status_code == status


def test_a_refused_connection_lives_on(gateway: RunningGateway, keys: dict[str, str]) -> None:
    """The door drops the body that nobody reads; the next request on the connection is answered."""
    with httpx.Client(base_url=gateway.url) as client:
        for _ in range(3):
            refused = client.post("/v1/embeddings", json={"input": "a" * 100_000}, headers={"x-api-key": "none"})
            assert refused.status_code == 401
            answer = client.post("/v1/embeddings", json={"input": "a"}, headers=bearer(keys["good"]))
            assert answer.status_code == 200
            assert answer.headers.get("connection") != "close"


def test_load_balancers_need_no_key(gateway: RunningGateway) -> None:
    """HEAD and GET of the health routes."""
    for path in ("/health", "/health/live", "/health/ready"):
        assert httpx.get(f"{gateway.url}{path}").status_code == 200
        assert httpx.head(f"{gateway.url}{path}").status_code == 200


def test_a_running_gateway_follows_its_file(gateway: RunningGateway, book: KeyFile, keys: dict[str, str]) -> None:
    """A key that is made with the script is taken, and refused after it was revoked with it, within two seconds."""

    def script(*words: str) -> str:
        command = [str(CHECKOUT / "scripts" / "keys.sh"), "--file", str(book.path), *words]
        ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return str(ended.stdout).strip()

    def becomes(key: str, status: int) -> None:
        ends = time.monotonic() + 2
        while httpx.get(f"{gateway.url}/v1/models", headers=bearer(key)).status_code != status:
            assert time.monotonic() < ends
            time.sleep(0.05)

    key = script("add", "--tenant", "new")
    becomes(key, 200)
    successor = script("rotate", key, "--overlap", "1h")
    becomes(successor, 200)
    becomes(key, 200)
    script("revoke", key)
    becomes(key, 401)
    becomes(successor, 200)
    assert key not in script("list")


class EndlessGpu(FakeGpu):
    """Reads GPUs for as long as somebody listens."""

    async def watch_gpu_status(
        self, *, interval_seconds: float = 1.0, deadline: Deadline | None = None
    ) -> AsyncIterator[GpuStatus]:
        """A reading each interval."""
        while True:
            yield await self.get_gpu_status(deadline=deadline)
            await asyncio.sleep(interval_seconds)


@pytest.mark.parametrize("path", ["/status/stream", "/v1/gpu/stream?interval_ms=100"])
def test_a_stream_without_an_end_ends_with_its_key(book: KeyFile, path: str) -> None:
    """Who is let in once does not listen for ever: a revoked key's stream breaks, another one's goes on."""
    keys = [book.add(Role.OPERATOR) for _ in range(2)]
    peers = FakePeers(gpu=EndlessGpu(FakeHop("gpu")))
    settings = GatewaySettings.model_validate({"keys": {"file": book.path}})
    with RunningGateway(settings, peers) as running, ExitStack() as open_:
        ended, goes_on = (
            open_.enter_context(httpx.stream("GET", running.url + path, headers=bearer(key), timeout=5)).iter_lines()
            for key in keys
        )
        assert next(ended)
        assert next(goes_on)
        with changing(book.path) as records:
            records[:] = revoked(records, id_of(keys[0]) or "", now=1)
        ends, last = time.monotonic() + 5, ""
        for line in ended:
            assert time.monotonic() < ends
            last = line or last
        assert "INVALID_API_KEY" in last
        for _ in range(20):
            assert "INVALID_API_KEY" not in next(goes_on)


def health(gateway: RunningGateway, key: str) -> subprocess.CompletedProcess[str]:
    """What the health script says, with a key or without."""
    environment = {**os.environ, "MESH_API_KEY": key}
    command = [sys.executable, "-m", "ops.local", "health", "--gateway", gateway.url]
    return subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=60)


def test_the_health_script_shows_its_key_or_says_which_one_is_missing(
    gateway: RunningGateway, keys: dict[str, str]
) -> None:
    """With an operator's key it says how the hops are; without, what to do."""
    assert "embedding" in health(gateway, keys["operator"]).stdout
    for key in ("", keys["good"]):
        refused = health(gateway, key)
        assert refused.returncode == 1
        assert "MESH_API_KEY" in refused.stdout
        assert "./scripts/keys.sh add" in refused.stdout


def test_the_example_works_with_a_key(gateway: RunningGateway, keys: dict[str, str], tmp_path: Path) -> None:
    """OPENAI_API_KEY, as everywhere."""
    document = tmp_path / "note.md"
    document.write_text("A breaker stops calls.\nBread.\n")
    for key, succeeds in ((keys["good"], True), ("none", False)):
        environment = {**os.environ, "OPENAI_BASE_URL": f"{gateway.url}/v1", "OPENAI_API_KEY": key}
        command = [sys.executable, "examples/ask_document.py", str(document), "When?"]
        ended = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=60)
        assert (ended.returncode == 0) is succeeds


def test_a_process_without_keys_does_not_start_beyond_loopback(tmp_path: Path) -> None:
    """It ends with the exit code for settings, says what to do, and opens no port."""
    environment = {**os.environ, "GATEWAY_HOST": "0.0.0.0", "GATEWAY_PORT": "0"}
    environment.pop("GATEWAY_KEYS__FILE", None)
    command = [sys.executable, "-m", "gateway"]
    ended = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == EXIT_SETTINGS
    assert "./scripts/keys.sh add" in ended.stderr
    assert "GATEWAY_KEYS__OPEN_TO_ANYONE" in ended.stderr
