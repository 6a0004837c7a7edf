"""A real Prometheus over processes of a test's choice, with the project's own configuration, rules and dashboard.

Only durations differ: what an operator is told after minutes, a test wants to see within seconds.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from ops.local.layout import CHECKOUT
from ops.local.processes import wait_until
from ops.local.testing import free_ports

CONFIGURATION = CHECKOUT / "ops" / "prometheus"
DASHBOARD = CHECKOUT / "ops" / "grafana" / "dashboards" / "torch-isolation-mesh.json"
INTERVAL = "500ms"
QUICKER = 120
"""So many times quicker than in production windows and patience run out."""
_SHORTEST_WINDOW_SECONDS = 5
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Prometheus:
    """One that runs. ``began`` is the time from which it knows anything, in Unix seconds."""

    url: str
    began: float = field(default_factory=time.time)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression gives now."""
        return self._result("query", {"query": expression})

    def history(self, expression: str) -> list[dict[str, Any]]:
        """What an expression gave, at each second since the beginning."""
        asked = {"query": expression, "start": str(self.began), "end": str(time.time()), "step": "1"}
        return self._result("query_range", asked)

    def rules(self) -> dict[str, dict[str, Any]]:
        """Every rule by its name: its state and health."""
        groups = self._get("rules", {})["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    def firing(self, alert: str, **labels: str) -> bool:
        """Whether an alert with these labels fires now."""
        return bool(self.query(_firing(alert, labels)))

    def has_fired(self, alert: str, **labels: str) -> bool:
        """Whether it has at any time, which a look now and then could miss."""
        return bool(self.query(f"max_over_time({_firing(alert, labels)}[1h])"))

    def _result(self, what: str, asked: Mapping[str, str]) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self._get(what, asked)["result"]
        return result

    def _get(self, what: str, asked: Mapping[str, str]) -> dict[str, Any]:
        answer = httpx.post if asked else httpx.get
        said = answer(f"{self.url}/api/v1/{what}", params=dict(asked), timeout=30, trust_env=False)
        assert said.status_code == httpx.codes.OK, f"{asked.get('query', what)}: {said.text}"
        data: dict[str, Any] = said.json()["data"]
        return data


def _firing(alert: str, labels: Mapping[str, str]) -> str:
    matchers = "".join(f', {label}="{value}"' for label, value in labels.items())
    return f'ALERTS{{alertname="{alert}", alertstate="firing"{matchers}}}'


@contextmanager
def prometheus(program: str, targets: Mapping[str, str], key: str = "") -> Iterator[Prometheus]:
    """Run one until the block is left.

    Args:
        program: path of the executable.
        targets: host and port of each process's metrics, by the process's name.
        key: an operator's, where the gateway asks for one.
    """
    with tempfile.TemporaryDirectory(prefix="mesh-prometheus-") as scratch:
        home = Path(scratch)
        _configure(home, targets)
        (home / "gateway.key").write_text(key)
        (port,) = free_ports(1)
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    program,
                    f"--config.file={home / 'prometheus.yml'}",
                    f"--storage.tsdb.path={home / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                    "--log.level=warn",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            started = Prometheus(f"http://127.0.0.1:{port}")
            ready = wait_until(lambda: _answers(started.url) or process.poll() is not None, seconds=_START_SECONDS)
            assert ready, "no answer"
            assert process.poll() is None, (home / "log").read_text()
            yield started
        finally:
            process.terminate()
            process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _configure(home: Path, targets: Mapping[str, str]) -> None:
    shutil.copy(CONFIGURATION / "prometheus.yml", home)
    configuration = yaml.safe_load((home / "prometheus.yml").read_text())
    configuration["global"] = dict.fromkeys(configuration["global"], INTERVAL)
    (home / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    (home / "alerts.yml").write_text(quicker((CONFIGURATION / "alerts.yml").read_text()))
    listed = [{"targets": [target], "labels": {"process": name}} for name, target in targets.items()]
    (home / "targets.yml").write_text(yaml.safe_dump(listed))


def quicker(rules: str) -> str:
    """Rules with every window and every patience shortened."""

    def shortened(least: float) -> Callable[[re.Match[str]], str]:
        def shorten(found: re.Match[str]) -> str:
            seconds = int(found[2]) * {"s": 1, "m": 60}[found[3]]
            return f"{found[1]}{max(least, seconds / QUICKER) * 1000:.0f}ms"

        return shorten

    rules = re.sub(r"(\[)(\d+)([sm])(?=\])", shortened(_SHORTEST_WINDOW_SECONDS), rules)
    return re.sub(r"(for: )(\d+)([sm])", shortened(0.0), rules)


def dashboard_queries() -> list[str]:
    """Every query of the dashboard, its variables replaced as Grafana does with everything selected."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    annotations = [each["expr"] for each in dashboard["annotations"]["list"]]
    replaced = {"$__rate_interval": f"{_SHORTEST_WINDOW_SECONDS}s", "$instance": ".*", "$hop": ".*"}
    queries = []
    for query in (*panels, *annotations):
        for variable, value in replaced.items():
            query = query.replace(variable, value)  # noqa: PLW2901 - one after the other
        assert "$" not in query, f"a variable that the dashboard does not define: {query}"
        queries.append(query)
    return queries
