"""The engine under measurement computes on cores of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cores import Cores

_ASK = "import os; print(sorted(os.sched_getaffinity(0)), os.environ.get('VLLM_CPU_OMP_THREADS_BIND'))"


@pytest.fixture
def cores() -> Cores:
    """The halves of this machine."""
    halves = Cores.halves()
    if not halves.engine:
        pytest.skip("one core, or no taskset: there is nothing to divide")
    return halves


def test_halves_share_no_core(cores: Cores) -> None:
    """Every core belongs to one side."""
    assert sorted(cores.engine + cores.rest) == sorted(os.sched_getaffinity(0))
    assert not set(cores.engine) & set(cores.rest)


def test_the_engine_is_held_to_its_half_and_the_rest_to_theirs(cores: Cores, tmp_path: Path) -> None:
    """Also an engine that is started by what is held to the other half; after the block all is as before."""
    python = cores.engine_python(Path(sys.executable), tmp_path)
    before = os.sched_getaffinity(0)
    with cores.held_to_the_rest():
        rest = subprocess.check_output([sys.executable, "-c", _ASK], text=True)
        engine = subprocess.check_output([python, "-c", _ASK], text=True)
    assert rest.startswith(str(list(cores.rest)))
    assert engine.strip() == f"{list(cores.engine)} {','.join(map(str, cores.engine))}"
    assert os.sched_getaffinity(0) == before


def test_a_machine_that_cannot_divide_goes_without(tmp_path: Path) -> None:
    """The engine's Python is itself, and nobody is held to anything."""
    before = os.sched_getaffinity(0)
    with Cores().held_to_the_rest():
        assert os.sched_getaffinity(0) == before
    assert Cores().engine_python(Path("python"), tmp_path) == Path("python")
