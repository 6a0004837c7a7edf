"""``python -m ops.local.certificates``: development certificates, made by the gateway's environment, which can."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ops.local.console import Console
from ops.local.environments import Environment, Installer, mesh_environments
from ops.local.failures import OperatorError
from ops.local.layout import Layout
from ops.local.processes import Command, run_logged
from ops.tls.__main__ import DEFAULT_FOLDER, parser
from ops.tls.names import CertificateFiles

EXIT_FAILED = 1
KEEP_DAYS = 14
"""A start renews what is valid for less than this, so that a mesh that is started often never warns."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make or renew them as the command line says. Returns the exit code."""
    asked = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(asked)  # help and slips of the pen need no environment
    layout = Layout.from_environment(os.environ)
    named = options.folder != DEFAULT_FOLDER
    folder = options.called_from / options.folder if named else folder_of(layout)
    try:
        Installer(layout, Console(), os.environ).ensure(_environment())
    except OperatorError as error:
        print(f"{error.message}\n{error.hint}".rstrip(), file=sys.stderr)
        return EXIT_FAILED
    command = [*_command(layout), *asked, "--folder", str(folder.absolute())]
    return subprocess.run(command, cwd=layout.checkout, check=False).returncode  # noqa: S603 - our own command


def folder_of(layout: Layout) -> Path:
    """Where a mesh's development certificates are."""
    return layout.home / "tls"


def ensure_certificates(layout: Layout, console: Console, environ: Mapping[str, str]) -> None:
    """Make what a start with ``--tls`` needs and is not there, or ends soon. The gateway's environment is installed.

    Raises:
        OperatorError: they cannot be made.
    """
    arguments = ["--folder", str(folder_of(layout)), "--keep-days", str(KEEP_DAYS)]
    with console.step("Development certificates") as step:
        command = Command([*_command(layout), *arguments], layout.checkout, environ, layout.install_log)
        run_logged(command, step)
        step.outcome = str(folder_of(layout))


def refuse_others(environ: Mapping[str, str]) -> None:
    """Raise OperatorError where the environment names certificates already: nobody could tell which ones are meant."""
    if environ.get("MESH_TLS_CA"):
        raise OperatorError(
            "MESH_TLS_CA names certificates of your own, and --tls would make others.",
            hint="Start without --tls to use yours in every process, or unset it and its like.",
        )


def files_of(layout: Layout) -> CertificateFiles:
    """The files of a mesh's development certificates."""
    return CertificateFiles(folder_of(layout))


def _environment() -> tuple[Environment, ...]:
    return tuple(each for each in mesh_environments() if each.name == "gateway")


def _command(layout: Layout) -> list[str]:
    return [str(layout.python("gateway")), "-m", "ops.tls"]


if __name__ == "__main__":
    raise SystemExit(main())
