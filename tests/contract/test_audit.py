"""Asking the advisory database: what the script makes of the answers and, where it is wanted, the answer itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ops.local.layout import CHECKOUT

SCRIPT = str(CHECKOUT / "scripts" / "audit.sh")
ONLINE = "MESH_ONLINE_AUDIT"
CANNOT_ASK = 75


@pytest.mark.parametrize(
    ("says", "exits", "expected"),
    [
        ("No known vulnerabilities found", 0, 0),
        ("Found 1 known vulnerability in 1 package", 1, 1),
        ("ERROR: h11: Dependency not found on PyPI and could not be audited: h11 (0.16.0)", 1, CANNOT_ASK),
        ("requests.exceptions.ConnectionError: Max retries exceeded", 1, CANNOT_ASK),
    ],
)
def test_a_flaw_is_no_unreachable_database(tmp_path: Path, says: str, exits: int, expected: int) -> None:
    """0 is nothing known, 1 a flaw, 75 nobody to ask; and a package that was skipped is never taken for a good one."""
    stand_in = tmp_path / "audit" / "bin" / "pip-audit"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text(f'#!/bin/sh\ncase "$*" in *--strict*) ;; *) exit 9 ;; esac\necho "{says}"\nexit {exits}\n')
    stand_in.chmod(0o755)
    environment = {**os.environ, "MESH_ENVS": str(tmp_path)}
    asked = subprocess.run([SCRIPT, "supervisor"], env=environment, capture_output=True, text=True)
    assert asked.returncode == expected
    assert says in asked.stdout


@pytest.mark.slow
def test_no_pin_has_a_flaw_that_the_database_knows() -> None:
    """What pip-audit finds about every pinned version, today. Off unless asked for: it looks each of them up."""
    if not os.environ.get(ONLINE):
        pytest.skip(f"{ONLINE}=1 has every pin looked up in the advisory database; the table of known flaws needs none")
    asked = subprocess.run([SCRIPT], capture_output=True, text=True)
    if asked.returncode == CANNOT_ASK:
        pytest.skip(asked.stderr.strip().splitlines()[-1])
    assert asked.returncode == 0, asked.stdout
