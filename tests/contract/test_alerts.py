"""The alert rules and the dashboard: valid, each alert tried and explained, and built on metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.local.prometheus import find_program
from tests.prometheus import CONFIGURATION, DASHBOARD, dashboard_queries, quicker

PAGE = Path(__file__).parents[2] / "docs" / "observability.md"
RULES = yaml.safe_load((CONFIGURATION / "alerts.yml").read_text())
ALERTS: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
RECORDED = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
ASKED_FOR = {
    "MeshBreakerOpen",
    "MeshNoHealthyEndpoint",
    "MeshQueueSaturated",
    "MeshLatencyHigh",
    "MeshCacheHitRateLow",
    "MeshGpuMemoryHigh",
}


@pytest.fixture(scope="module")
def promtool() -> str:
    """Prometheus's own tool; the test is skipped where there is none."""
    found = find_program("promtool")
    if found is None:
        pytest.skip("promtool is not there; scripts/install_prometheus.sh brings it where apt has it")
    return found


def test_each_alert_fires_when_it_must_and_not_otherwise(promtool: str) -> None:
    """``promtool test rules`` passes, and no alert is left out of it."""
    tried = subprocess.run(
        [promtool, "test", "rules", "alerts_test.yml"], cwd=CONFIGURATION, capture_output=True, text=True
    )
    assert tried.returncode == 0, tried.stdout + tried.stderr
    tests = (CONFIGURATION / "alerts_test.yml").read_text()
    assert [rule["alert"] for rule in ALERTS if rule["alert"] not in tests] == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("> 0.95", "> 0.85"),
        ("< 0.7", "< 0.8"),
        ("> 0.8", "> 0.99"),
        ("min_over_time(mesh_breaker_state[1m]) > 0", "min_over_time(mesh_breaker_state[1m]) > -1"),
        ("for: 30s", "for: 10m"),
    ],
)
def test_the_rules_tests_see_a_wrong_bound(promtool: str, tmp_path: Path, before: str, after: str) -> None:
    """With another bound in the rules, they fail: they are no decoration."""
    rules = (CONFIGURATION / "alerts.yml").read_text()
    assert before in rules
    (tmp_path / "alerts.yml").write_text(rules.replace(before, after))
    (tmp_path / "alerts_test.yml").write_text((CONFIGURATION / "alerts_test.yml").read_text())
    tried = subprocess.run([promtool, "test", "rules", "alerts_test.yml"], cwd=tmp_path, capture_output=True)
    assert tried.returncode == 1


@pytest.mark.parametrize("targets", ["targets.compose.yml", "targets.local.yml"])
def test_the_configuration_is_valid(promtool: str, tmp_path: Path, targets: str) -> None:
    """``promtool check config`` is content with it and with either list of targets."""
    (tmp_path / "gateway.key").touch()
    for name, source in (("prometheus.yml",) * 2, ("alerts.yml",) * 2, ("targets.yml", targets)):
        (tmp_path / name).write_text((CONFIGURATION / source).read_text())
    checked = subprocess.run([promtool, "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "targets.yml" not in checked.stderr  # it would warn of a list that is not there


def test_each_alert_says_what_to_do() -> None:
    """A summary, what it means, what to do first, how bad it is, and a part of the page under its own name."""
    page = PAGE.read_text()
    assert {rule["alert"] for rule in ALERTS} >= ASKED_FOR
    for rule in ALERTS:
        name, notes = rule["alert"], rule["annotations"]
        assert {"summary", "description", "action", "runbook"} == set(notes), name
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert notes["runbook"] == f"docs/observability.md#{name.lower()}"
        assert f"\n### {name}\n" in page


def test_rules_and_dashboard_ask_for_metrics_that_exist() -> None:
    """Every name in them is one of the page's table or of Prometheus's and Python's own."""
    documented = set(re.findall(r"^\| `(mesh_\w+)", PAGE.read_text(), re.MULTILINE))
    expressions = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
    used = set(re.findall(r"\b(mesh[_:][\w:]+)", " ".join([*expressions, *dashboard_queries()])))
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used if name not in documented}
    assert ours - documented - RECORDED - {"mesh_batch_size"} == set()


def test_the_dashboard_is_whole() -> None:
    """Valid JSON for Grafana: each panel with an id and a place of its own, a title and, but for rows, queries."""
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["uid"]
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["title"]
        assert panel["type"] == "row" or panel["targets"], panel["title"]
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "instance", "hop"}
    assert len(dashboard_queries()) > 50


def test_what_tests_hurry_is_what_is_installed() -> None:
    """Shortening changes durations and nothing else, so that what evaluates there evaluates here."""
    rules = (CONFIGURATION / "alerts.yml").read_text()
    hurried = quicker(rules)
    assert hurried != rules
    duration = re.compile(r"(?<=\[)\w+(?=\])|(?<=for: )\w+")
    assert duration.sub("", hurried) == duration.sub("", rules)
