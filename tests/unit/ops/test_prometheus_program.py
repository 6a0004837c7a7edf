"""Bringing Prometheus for the checks: nothing where it is there, Debian's package where it is not, or a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ops.local.layout import Layout
from ops.local.prometheus import find_program, unpack


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A machine with a shell's commands, an empty directory of programs first on its PATH, and no environments."""
    monkeypatch.setenv("MESH_ENVS", str(tmp_path / "envs"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Layout.from_environment(os.environ)


def program(folder: Path, name: str, script: str = "") -> None:
    """An executable that runs a shell script."""
    (folder / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    (folder / name).chmod(0o755)


def apt(folder: Path, *, knows_after_update: bool = False) -> None:
    """An apt-get that has the package, and a dpkg-deb that unpacks it."""
    known = '[ -e "$(dirname "$0")/lists" ]' if knows_after_update else "true"
    update = 'touch "$(dirname "$0")/lists"'
    download = f"{known} && touch prometheus_2.42_amd64.deb"
    program(folder, "apt-get", f"case $1 in update) {update} ;; download) {download} ;; esac")
    program(folder, "dpkg-deb", 'mkdir -p "$3/usr/bin" && touch "$3/usr/bin/prometheus" "$3/usr/bin/promtool"')


def test_what_is_on_the_path_is_used(layout: Layout, tmp_path: Path) -> None:
    """Nothing is brought where somebody installed it."""
    for name in ("prometheus", "promtool"):
        program(tmp_path / "bin", name)
    assert unpack(layout) == ""
    assert find_program("promtool") == str(tmp_path / "bin" / "promtool")
    assert not layout.envs.exists()


@pytest.mark.parametrize("knows_after_update", [False, True])
def test_debians_package_is_unpacked(layout: Layout, tmp_path: Path, knows_after_update: bool) -> None:
    """Beside the environments, also where apt has to read its lists first; the second time there is nothing to do."""
    apt(tmp_path / "bin", knows_after_update=knows_after_update)
    assert unpack(layout) == ""
    assert find_program("prometheus") == str(layout.envs / "prometheus" / "usr" / "bin" / "prometheus")
    (tmp_path / "bin" / "apt-get").unlink()
    assert unpack(layout) == ""


def test_without_apt_there_is_a_reason(layout: Layout) -> None:
    """It says what is missing and what to install."""
    assert "no apt-get" in unpack(layout)
    assert find_program("prometheus") is None


def test_an_apt_that_fails_leaves_a_reason_and_nothing_half_done(layout: Layout, tmp_path: Path) -> None:
    """A machine without a network is no failure of the checks."""
    apt(tmp_path / "bin")
    program(tmp_path / "bin", "dpkg-deb", 'mkdir -p "$3/usr/bin" && touch "$3/usr/bin/prometheus" && exit 2')
    assert "apt-get does not bring it" in unpack(layout)
    assert find_program("prometheus") is None
