"""Prints the requirements of one process: ``python requirements.py PYPROJECT EXTRA…``.

The images install these, at the versions of ops/constraints, and copy the project's own code beside them. So what is
installed is built anew when a requirement changes, not when a line of code does. Standard library only.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence


def requirements(pyproject: str, extras: Sequence[str]) -> list[str]:
    """The project's own requirements and those of ``extras``, each once, in their order.

    Raises:
        KeyError: there is no such extra.
    """
    project = tomllib.loads(pyproject)["project"]
    wanted = [*project["dependencies"], *(each for extra in extras for each in project["optional-dependencies"][extra])]
    return list(dict.fromkeys(wanted))


def main(arguments: Sequence[str]) -> int:
    """Print them, one a line."""
    path, *extras = arguments
    with open(path, encoding="utf-8") as file:
        print("\n".join(requirements(file.read(), extras)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
