"""A real Prometheus before a gateway that asks for keys: an operator's lets it in, and nobody else sees it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from gateway.keys.records import Role
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers, RunningGateway
from gateway.testing.keys import KeyFile
from ops.local.processes import wait_until
from ops.local.prometheus import find_program
from tests.prometheus import prometheus


@pytest.fixture
def program() -> str:
    """Prometheus; the test is skipped where there is none."""
    found = find_program("prometheus")
    if found is None:
        pytest.skip("Prometheus is not there; scripts/install_prometheus.sh brings it where apt has it")
    return found


@contextmanager
def worker() -> Iterator[tuple[str, list[str | None]]]:
    """Something that tells metrics like a worker: where it listens, and the credentials that were shown to it."""
    shown: list[str | None] = []

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers.get("authorization"))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", shown
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("asks", "has", "up"),
    [(True, Role.OPERATOR, "1"), (True, Role.INFERENCE, "0"), (True, None, "0"), (False, None, "1")],
    ids=["an operator's key", "another key", "no key", "none asked for"],
)
def test_prometheus_reads_the_gateway_with_an_operators_key_alone(
    program: str, tmp_path: Path, asks: bool, has: Role | None, up: str
) -> None:
    """The key is in a file, which is empty where no key is asked for; workers never see it."""
    book = KeyFile(tmp_path / "keys.json")
    keys = {role: book.add(role) for role in Role}
    settings = GatewaySettings.model_validate({"keys": {"file": book.path}} if asks else {})
    with ExitStack() as stack:
        gateway = stack.enter_context(RunningGateway(settings, FakePeers()))
        address, shown = stack.enter_context(worker())
        targets = {"gateway": gateway.url.removeprefix("http://"), "embedding": address}
        running = stack.enter_context(prometheus(program, targets, key=keys[has] if has else ""))

        def told() -> dict[str, str]:
            return {each["metric"]["process"]: each["value"][1] for each in running.query('up{job="mesh"}')}

        assert wait_until(lambda: told() == {"gateway": up, "embedding": "1"}, seconds=30), told()
    assert set(shown) == {None}
