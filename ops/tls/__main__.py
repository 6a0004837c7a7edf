"""``scripts/make_dev_certs.sh``: make or renew the development certificates."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

DEFAULT_FOLDER = Path("var/tls")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make them, and say what was made. Returns the exit code."""
    from ops.tls.development import Wanted, make_all  # the command line is also read by a Python without cryptography

    options = parser().parse_args(arguments)
    wanted = Wanted(
        days=options.days,
        hosts=options.host,
        clients=options.client,
        fresh_authority=options.new_authority,
        keep_days=options.keep_days,
    )
    folder = options.called_from / options.folder
    made = make_all(folder, wanted)
    if made:
        print(f"{folder}: {', '.join(made)}; valid for {options.days:g} days, for development only.")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make_dev_certs.sh",
        description="An authority and one certificate for each process of the mesh, for development. Run again, it "
        "renews the certificates: a mesh that uses them goes on without a restart.",
    )
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where they are (default var/tls)")
    parser.add_argument("--called-from", type=Path, default=Path.cwd(), help=argparse.SUPPRESS)
    parser.add_argument("--days", type=float, default=30.0, help="how long each is valid (default 30)")
    parser.add_argument("--host", action="append", default=[], help="a further name or address, in all of them")
    parser.add_argument("--client", action="append", default=[], help="a further client, with this name")
    parser.add_argument(
        "--new-authority", action="store_true", help="replace the authority too: older certificates count no more"
    )
    parser.add_argument("--keep-days", type=float, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
