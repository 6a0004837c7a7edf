#!/usr/bin/env python3
"""Exports a model to ONNX for the workers: ./scripts/onnx_export.py --model M --output models/onnx/ [--int8].

Runs in the workers' environment, which ./scripts/start_torch_isolation.sh installs, whatever Python calls it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Hand over to ``inference.export`` there; ends with a message where there is no such environment."""
    home = CHECKOUT / os.environ.get("MESH_HOME", "var")
    python = CHECKOUT / os.environ.get("MESH_ENVS", str(home / "envs")) / "workers" / "bin" / "python"
    if not os.access(python, os.X_OK):
        raise SystemExit(
            f"There is no {python}: ./scripts/start_torch_isolation.sh installs it. Where the project's extra "
            "'workers' is installed otherwise: python -m inference.export"
        )
    path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH", "")]))
    # Relative paths count from where the user stands, so the directory stays.
    os.execve(  # noqa: S606 - this very process goes on there, and there is no shell to misread a name
        python, [str(python), "-m", "inference.export", *sys.argv[1:]], {**os.environ, "PYTHONPATH": path}
    )


if __name__ == "__main__":
    main()
