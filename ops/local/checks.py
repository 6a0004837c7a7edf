"""The project's checks, in environments of their own: what README's one test command runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.docker.engine import why_not as no_containers
from ops.local.browser import without_browser
from ops.local.console import Console, render_table
from ops.local.environments import Installer, engine_environment, has_cuda, mesh_environments, test_environments
from ops.local.failures import OperatorError
from ops.local.layout import Layout
from ops.local.models import prepare_models
from ops.local.processes import end_group
from ops.local.prometheus import unpack
from ops.local.topology import ENGINES_APART, plan

WHY_NOT = "MESH_VLLM_WHY_NOT"
"""Tells the tests that need vLLM why they have to do without."""
CLOSING_LINE = re.compile(r"^(=+ )?\d+ (passed|failed|error|errors|skipped|deselected)\b.* in [\d.]+s")
# Fixtures stop the mesh that they started; that takes a drain.
_INTERRUPT_GRACE_SECONDS = 60.0


@dataclass(frozen=True)
class Check:
    """One step: the part it belongs to, what it is called, and the command, whose exit code 0 is success."""

    part: str
    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How a step ended. ``closing`` is pytest's last line, where the step was pytest."""

    check: Check
    passed: bool
    seconds: float
    closing: str = ""


PARTS = (
    "lint",
    "types",
    "imports",
    "protos",
    "unit",
    "hop",
    "contract",
    "frameworks",
    "workers",
    *ENGINES_APART,
    "integration",
    "chaos",
    "browser",
    "containers",
)


def all_checks(layout: Layout, stubs: Path) -> tuple[Check, ...]:
    """Every step in the order in which they run: the quickest to fail first.

    Args:
        layout: where the environments and the tests are.
        stubs: an empty directory, into which the stubs are generated anew.
    """
    bin_ = layout.python("test").parent
    python = str(bin_ / "python")
    protos = sorted(str(path.relative_to(layout.checkout)) for path in layout.checkout.glob("protos/*/v1/*.proto"))
    outputs = (f"--python_out={stubs}", f"--pyi_out={stubs}", f"--grpc_python_out={stubs}")
    return (
        Check("lint", "ruff check", (python, "-m", "ruff", "check", ".")),
        Check("lint", "ruff format", (python, "-m", "ruff", "format", "--check", ".")),
        Check("types", "mypy strict", (python, "-m", "mypy", ".")),
        Check("imports", "import contracts", (str(bin_ / "lint-imports"),)),
        Check("protos", "buf lint", (str(bin_ / "buf"), "lint", "protos")),
        Check("protos", "generate stubs", (python, "-m", "grpc_tools.protoc", "-Imesh/pb=protos", *outputs, *protos)),
        Check(
            "protos",
            "stubs are current",
            ("diff", "-r", "-x", "__pycache__", "-x", "__init__.py", str(stubs / "mesh" / "pb"), "mesh/pb"),
        ),
        *(_pytest(python, part, f"tests/{part}", "-m", "not workers_env") for part in ("unit", "hop", "contract")),
        _pytest(str(layout.python("frameworks")), "frameworks", "tests/frameworks"),
        _pytest(str(layout.python("workers")), "workers", "-m", "workers_env", *needing_workers(layout.checkout)),
        *(_pytest(python, engine, f"tests/{engine}") for engine in ENGINES_APART),
        _pytest(python, "integration", "tests/integration"),
        _pytest(python, "chaos", "tests/chaos"),
        _pytest(python, "browser", "tests/browser"),
        _pytest(python, "containers", "tests/containers"),
    )


def _pytest(python: str, part: str, *arguments: str) -> Check:
    return Check(part, f"pytest: {part}", (python, "-m", "pytest", "-q", *arguments))


def needing_workers(checkout: Path) -> list[str]:
    """The test files that hold tests for the workers' environment; the others may import what is not there."""
    files = sorted(checkout.glob("tests/**/test_*.py"))
    return [str(file.relative_to(checkout)) for file in files if "mark.workers_env" in file.read_text()]


def checks(parts: Sequence[str], layout: Layout, console: Console, *, keep_going: bool) -> int:
    """Run the checks of ``parts`` (all, where empty). Returns 0 when all passed, otherwise 1."""
    installer = Installer(layout, console, os.environ)
    installer.ensure((*mesh_environments(), *test_environments()))
    if "llamacpp" in parts:
        # Compiled for minutes: only who names the part gets it; elsewhere its tests say that they skip.
        installer.ensure((engine_environment("llamacpp"),))
    why_not = without_vllm(parts, installer)
    for reason in filter(None, (why_not, without_browser(parts, installer, layout, console, os.environ))):
        console.say(reason)
    if not parts or {*ENGINES_APART, "integration", "chaos", "browser"} & set(parts):
        prepare_models(layout, plan({}), console, os.environ)
    if (not parts or {"contract", "integration"} & set(parts)) and (without := unpack(layout)):
        console.say(f"The tests that run a real Prometheus are skipped: {without}")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="mesh-stubs-") as stubs:
        for check in all_checks(layout, Path(stubs)):
            if parts and check.part not in parts:
                continue
            if not parts and check.part == "containers" and (reason := no_containers()):
                console.say(f"\n── {check.name}: left out, since {reason}")
                continue
            outcome = _run(check, layout, console, why_not)
            outcomes.append(outcome)
            if not outcome.passed and not keep_going:
                break
    return _report(outcomes, console)


def without_vllm(parts: Sequence[str], installer: Installer) -> str:
    """Make the environment that the part needs. Returns why there is none; empty where there is, or nobody asks for it.

    It takes gigabytes and has no build for every machine. Where it cannot be had, all other checks are worth having;
    who names the part gets it or hears why not.

    Raises:
        OperatorError: it was named, and cannot be had.
    """
    if parts and "vllm" not in parts:
        return ""
    try:
        installer.ensure((engine_environment("vllm", cuda=has_cuda()),))
    except OperatorError as error:
        if parts:
            raise
        return f"vLLM cannot be installed here: {error.message}"
    return ""


def _run(check: Check, layout: Layout, console: Console, why_not: str) -> Outcome:
    console.say(f"\n── {check.name}")
    began = time.monotonic()
    closing = ""
    process = subprocess.Popen(  # noqa: S603 - our own commands
        check.command,
        cwd=layout.checkout,
        env={**os.environ, "MESH_ENVS": str(layout.envs), "MESH_MODELS": str(layout.models), WHY_NOT: why_not},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C reaches it once, through us
    )
    try:
        for line in _lines(process):
            console.say(line)
            closing = line if CLOSING_LINE.match(line) else closing
        passed = process.wait() == 0
    except BaseException:
        end_group(process, first=signal.SIGINT, grace_seconds=_INTERRUPT_GRACE_SECONDS)
        raise
    return Outcome(check, passed, time.monotonic() - began, closing)


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    for line in process.stdout or ():
        yield line.rstrip("\n")


def _report(outcomes: Sequence[Outcome], console: Console) -> int:
    rows = [[each.check.name, "passed" if each.passed else "FAILED", f"{each.seconds:.1f} s"] for each in outcomes]
    console.say()
    for line in render_table(["CHECK", "RESULT", "TIME"], rows):
        console.say(line)
    console.say()
    for outcome in outcomes:
        if outcome.closing:
            console.say(f"{outcome.check.part}: {outcome.closing.strip('= ')}")
    failed = [outcome.check for outcome in outcomes if not outcome.passed]
    if failed:
        again = " ".join(dict.fromkeys(check.part for check in failed))
        console.say(f"Failed: {', '.join(check.name for check in failed)}. Again, alone: scripts/test.sh {again}")
    return 1 if failed else 0
