"""Compiles the engines in C while the image is built: ``python -m ops.docker.compile_engines FOLDER``.

Where the worker runs there is no compiler: `ops.docker.fill_models` takes the libraries to the models' volume.
"""

from __future__ import annotations

import sys
from pathlib import Path

from inference.engines import amx
from inference.engines.compiled import CannotCompile


def main(folder: Path) -> int:
    """Compile into ``folder``. Returns 0 also where this machine's kind has no such instructions: others then run."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        print(f"compiled {amx.SOURCE.built(folder).name}")
    except CannotCompile as error:
        print(f"left out: {error}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
