"""The commands behind the scripts: ``start``, ``stop``, ``health``, ``checks``, ``freeze``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ops.local import checks, health, stop
from ops.local.console import Console
from ops.local.failures import OperatorError
from ops.local.freeze import freeze
from ops.local.layout import Layout
from ops.local.processes import interrupt_on_termination
from ops.local.start import StartOptions, start
from ops.local.topology import with_absolute_models

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

_AFTER_INTERRUPT = {
    "start": "Nothing was left running; the next start goes on from here.",
    "stop": "The mesh may still be stopping: run this again to see it through.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    options = _parser().parse_args(arguments)
    layout = Layout.from_environment(os.environ)
    console = Console()
    interrupt_on_termination()
    try:
        return _dispatch(options, layout, console)
    except OperatorError as error:
        print(f"\n{error.message}", file=sys.stderr)
        if error.hint:
            print(error.hint, file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"\nInterrupted. {_AFTER_INTERRUPT.get(options.command, '')}".rstrip(), file=sys.stderr)
        return EXIT_INTERRUPTED


def _dispatch(options: argparse.Namespace, layout: Layout, console: Console) -> int:
    match options.command:
        case "start":
            asked = StartOptions(options.mode, options.host, options.wait_seconds, options.torch_index_url, options.tls)
            return start(asked, layout, console, with_absolute_models(os.environ, options.called_from))
        case "stop":
            return stop.stop(layout, console)
        case "health":
            return health.health(layout, console, gateway=options.gateway, as_json=options.json)
        case "checks":
            return checks.checks(options.parts, layout, console, keep_going=options.keep_going)
        case _:
            return freeze(layout, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ops.local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    begin = commands.add_parser(
        "start", prog="start_torch_isolation.sh", description="Install, if need be, and start the mesh."
    )
    begin.add_argument(
        "--mode",
        choices=["local", "docker"],
        help="processes of this machine (the default), or containers, which are built first",
    )
    begin.add_argument("--host", help="address of the gateway (default 127.0.0.1, this machine only)")
    begin.add_argument(
        "--wait-seconds", type=float, default=300.0, help="how long to wait for the models (default 300)"
    )
    begin.add_argument(
        "--torch-index-url",
        default=os.environ.get("MESH_TORCH_INDEX_URL", ""),
        help="package index to take torch from, for example https://download.pytorch.org/whl/cpu; "
        "PyPI's torch for Linux is the CUDA build (also MESH_TORCH_INDEX_URL)",
    )

    begin.add_argument(
        "--tls",
        action="store_true",
        help="mutual TLS on every hop, with development certificates that are made and renewed in var/tls",
    )
    begin.add_argument("--called-from", type=Path, default=Path.cwd(), help=argparse.SUPPRESS)

    commands.add_parser("stop", prog="stop_torch_isolation.sh", description="Stop the mesh.")

    look = commands.add_parser(
        "health",
        prog="check_torch_isolation_health.sh",
        description="One row a hop; exit code 0 when all serve, 1 otherwise.",
    )
    look.add_argument("--gateway", help="URL of a gateway, also a remote one; by default the one started here")
    look.add_argument("--json", action="store_true", help="for machines")

    check = commands.add_parser(
        "checks",
        prog="test.sh",
        description="Run the project's checks. The part vllm installs vLLM, some gigabytes, and runs the "
        "whole path with it; where that cannot be had, a run of all parts skips it and says why. The part llamacpp "
        "compiles llama.cpp, some minutes; only who names it gets it. The part containers builds the images and hurts "
        "containers; a run of all parts leaves it out where no Docker engine answers.",
    )
    check.add_argument("parts", nargs="*", choices=[[], *checks.PARTS], help="only these (default: all)")
    check.add_argument("--keep-going", action="store_true", help="run the other parts after one has failed")

    commands.add_parser("freeze", prog="freeze_constraints.sh", description="Pin what the environments hold now.")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
