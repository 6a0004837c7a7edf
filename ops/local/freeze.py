"""Writing the constraints files: the exact versions that the environments hold."""

from __future__ import annotations

import re
import subprocess

from ops.local.console import Console
from ops.local.environments import engine_environment, mesh_environments, test_environments
from ops.local.failures import OperatorError
from ops.local.layout import Layout
from ops.local.topology import ENGINES_APART

_HEAD = """\
# Exact versions of the {name} environment. Written by scripts/freeze_constraints.sh from an environment in which the
# checks pass; pyproject.toml says what is needed, this says which version of it, and of all that it needs in turn.
"""
_LOCK_HEAD = """\
# Exactly what the {name} environment holds: installed as it stands, without asking what the packages need. Written by
# scripts/freeze_constraints.sh; to change it, install into that environment until `scripts/test.sh {name}` passes.
"""
_INSTALLERS = ("pip==", "wheel==")
_TOOLS = (*_INSTALLERS, "setuptools==")  # part of every new environment, in the version that Python brings


def constraints_from(frozen: str, *, tools: tuple[str, ...] = _TOOLS) -> list[str]:
    """The pins in the output of ``pip list --format=freeze``: no local version label (``+cpu``), none of ``tools``."""
    pins = (re.sub(r"\+[\w.]+$", "", line.strip()) for line in frozen.splitlines())
    wanted = (pin for pin in pins if re.fullmatch(r"[\w.-]+==[\w.!]+", pin) and not pin.startswith(tools))
    return sorted(wanted, key=str.lower)


def freeze(layout: Layout, console: Console) -> int:
    """Write one constraints file per environment from what it holds now. Returns the exit code, always 0."""
    engines = [engine_environment(name) for name in ENGINES_APART]
    optional = [engine for engine in engines if layout.python(engine.name).exists()]
    environments = {each.name: each for each in (*optional, *test_environments(), *mesh_environments())}
    for name, environment in environments.items():
        python = layout.python(name)
        if not python.exists():
            raise OperatorError(
                f"There is no environment {name} at {python.parents[1]}.", hint="Run scripts/test.sh once."
            )
        answer = subprocess.run(  # noqa: S603 - our own interpreter
            [str(python), "-m", "pip", "list", "--format=freeze", "--exclude-editable"],
            capture_output=True,
            text=True,
            check=True,
        )
        # A lock is all there is, and some packages need setuptools at run time.
        pins = constraints_from(answer.stdout, tools=_INSTALLERS if environment.locked else _TOOLS)
        target = layout.checkout / "ops" / "constraints" / f"{name}.txt"
        head = _LOCK_HEAD if environment.locked else _HEAD
        target.write_text(head.format(name=name) + "\n".join(pins) + "\n")
        console.say(f"{target.relative_to(layout.checkout)}: {len(pins)} packages")
    return 0
