"""What a worker's port for Prometheus answers, and to whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from mesh.serving.metrics_port import tell_prometheus


@pytest.fixture
def scraped() -> Iterator[Callable[..., httpx.Response]]:
    """Asks a port that listens on an address, under a name."""
    servers = []

    def ask(listens_on: str, name: str) -> httpx.Response:
        servers.append(tell_prometheus(listens_on, 0))
        port = servers[-1].server_port
        with httpx.Client(trust_env=False) as http:
            return http.get(f"http://127.0.0.1:{port}/metrics", headers={"host": f"{name}:{port}"})

    yield ask
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]", "this-machine"])
def test_on_loopback_it_answers_to_what_nobody_else_can_be_called(
    scraped: Callable[..., httpx.Response], name: str
) -> None:
    """Prometheus on the same machine reads it."""
    assert "process_cpu_seconds_total" in scraped("127.0.0.1", name).text


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example."])
def test_on_loopback_it_answers_to_no_other_name(scraped: Callable[..., httpx.Response], name: str) -> None:
    """DNS rebinding: a page that points its own name here reads nothing."""
    refused = scraped("127.0.0.1", name)
    assert refused.status_code == 421
    assert "process_" not in refused.text


def test_elsewhere_it_answers_to_every_name(scraped: Callable[..., httpx.Response]) -> None:
    """Nobody knows by which names a cluster calls a worker."""
    assert scraped("0.0.0.0", "embedding.mesh.svc.example").status_code == 200
