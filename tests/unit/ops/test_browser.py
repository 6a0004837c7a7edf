"""Getting a browser for the tests of the pages, or doing without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ops.local import browser
from ops.local.browser import PLAYWRIGHT, ensure_chromium, find_chromium, without_browser
from ops.local.console import Console
from ops.local.environments import Environment, Installer
from ops.local.failures import OperatorError
from ops.local.layout import Layout

LAYOUT = Layout.from_environment({})


class Installed(Installer):
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(LAYOUT, Console(), {})
        self.asked: list[Environment] = []

    def ensure(self, environments: Sequence[Environment]) -> bool:
        """Install nothing."""
        self.asked += environments
        return False


def on_path(monkeypatch: pytest.MonkeyPatch, folder: Path, **programs: str) -> None:
    """Let these programs, and no others, be what the machine has."""
    for name, text in programs.items():
        program = folder / name.replace("_", "-")
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_machines_own_chromium_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is installed where there is one."""
    on_path(monkeypatch, tmp_path, chromium="", apt_get="exit 1")
    assert find_chromium() == tmp_path / "chromium"
    ensure_chromium(LAYOUT, Console(), {})


def test_root_gets_debians_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lists first, then the package, without questions; a failure says what to do."""
    log = tmp_path / "said"
    on_path(monkeypatch, tmp_path, apt_get=f'echo "$DEBIAN_FRONTEND $*" >> {log}')
    monkeypatch.setattr("os.geteuid", lambda: 0)
    layout = Layout.from_environment({"MESH_HOME": str(tmp_path)})
    ensure_chromium(layout, Console(), {"PATH": "/usr/bin:/bin"})
    assert log.read_text().splitlines() == [
        "noninteractive update",
        "noninteractive install --yes --no-install-recommends chromium",
    ]
    on_path(monkeypatch, tmp_path, apt_get="exit 100")
    with pytest.raises(OperatorError, match="exit code 100"):
        ensure_chromium(layout, Console(), {"PATH": "/usr/bin:/bin"})


def test_checks_do_without_a_browser_where_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All checks run and say why; who asks for its part alone hears what to do; others never ask for one."""
    on_path(monkeypatch, tmp_path)
    installer = Installed()
    assert "no Chromium" in without_browser((), installer, LAYOUT, Console(), {})
    with pytest.raises(OperatorError, match="no Chromium"):
        without_browser(("browser",), installer, LAYOUT, Console(), {})
    assert without_browser(("unit",), installer, LAYOUT, Console(), {}) == ""
    assert installer.asked == []
    monkeypatch.setattr(browser, "find_chromium", lambda: Path("/usr/bin/chromium"))
    assert without_browser((), installer, LAYOUT, Console(), {}) == ""
    assert installer.asked == [PLAYWRIGHT]
