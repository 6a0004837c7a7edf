"""Models are prepared once, and again where what was found out before does not hold."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ops.local.console import Console
from ops.local.layout import Layout
from ops.local.models import prepare_models
from ops.local.topology import plan

# Stands in for the workers' Python: says what it was asked for, and leaves what the demo's training leaves.
_PYTHON = """#!/bin/sh
echo "$*" >> {said}
mkdir -p {models}/demo-llm && touch {models}/demo-llm/config.json
"""


def test_engines_are_measured_anew_on_another_machine_and_the_demo_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume of models that moves keeps the models; which engine is fastest there nobody has measured."""
    layout, said = Layout.from_environment({"MESH_HOME": str(tmp_path)}), tmp_path / "said"
    python = layout.python("workers")
    python.parent.mkdir(parents=True)
    python.write_text(_PYTHON.format(said=said, models=layout.models))
    python.chmod(0o755)

    def prepared() -> list[str]:
        said.write_text("")
        prepare_models(layout, plan({}), Console(io.StringIO()), {"PATH": "/usr/bin:/bin"})
        return said.read_text().splitlines()

    monkeypatch.setattr("ops.local.models.fingerprint", lambda: "this machine")
    assert len(prepared()) == 3
    assert prepared() == []
    monkeypatch.setattr("ops.local.models.fingerprint", lambda: "another one")
    assert [line.split()[:4] for line in prepared()] == [
        ["-m", "inference.prepare", "--for", "embedding"],
        ["-m", "inference.prepare", "--for", "reranking"],
    ]
    assert prepared() == []
