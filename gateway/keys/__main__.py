"""``python -m gateway.keys add | rotate | revoke | list``: makes, replaces, revokes and shows the gateway's keys.

Needs nothing but Python. A key is printed to standard output, once; all other words go to standard error, so that
``KEY=$(./scripts/keys.sh add --tenant search)`` holds the key alone.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gateway.keys.book import KeyBookError, as_time, changing, is_tenant, read, revoked
from gateway.keys.form import digest_of, id_of, new_key
from gateway.keys.records import LIMIT_NAMES, KeyRecord, Limits, Role

FILE_VARIABLE = "GATEWAY_KEYS__FILE"
_SECONDS_OF = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Do what the command says. Returns the exit code."""
    given = _parser(environ).parse_args(arguments)
    try:
        return int(given.command(given))
    except KeyBookError as error:
        _tell(str(error))
    except OSError as error:
        _tell(f"{given.file}: {error.strerror}.")
    return 1


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    default = environ.get(FILE_VARIABLE) or str(Path(environ.get("MESH_HOME") or "var") / "keys.json")
    parser = argparse.ArgumentParser(prog="keys", description="The gateway's API keys. A running gateway sees a change "
                                     "within two seconds.")  # fmt: skip
    parser.add_argument("--file", type=Path, default=Path(default), help=f"the file of keys ({default})")
    commands = parser.add_subparsers(required=True, metavar="add | rotate | revoke | list")

    add = commands.add_parser("add", help="make a key and print it, once")
    add.set_defaults(command=_add)
    add.add_argument("--tenant", required=True, type=_tenant, help="whose it is: 1 to 64 of A-Za-z0-9._-")
    add.add_argument("--role", action="append", choices=[role.value for role in Role], help="may be repeated "
                     "(inference)")  # fmt: skip
    add.add_argument("--expires-in", type=_duration, metavar="90d", help="s, m, h or d; never, unless given")
    for name in LIMIT_NAMES:
        add.add_argument(f"--{name.replace('_', '-')}", type=_positive, metavar="N", help="as the gateway's settings "
                         "say, unless given")  # fmt: skip

    rotate = commands.add_parser("rotate", help="make a key in place of another, which goes on for a while")
    rotate.set_defaults(command=_rotate)
    rotate.add_argument("id", type=_id, help="the id of the old key, or the key")
    rotate.add_argument("--overlap", type=_duration, default=86400, metavar="24h", help="how long the old one goes on")
    rotate.add_argument("--expires-in", type=_duration, metavar="90d", help="of the new key; never, unless given")

    revoke = commands.add_parser("revoke", help="refuse a key from now on")
    revoke.set_defaults(command=_revoke)
    revoke.add_argument("id", type=_id, help="the key's id, or the key")

    commands.add_parser("list", help="show all keys").set_defaults(command=_list)
    return parser


def _add(given: argparse.Namespace) -> int:
    now = int(time.time())
    with changing(given.file) as records:
        key, key_id = new_key()
        record = KeyRecord(
            id=key_id,
            tenant=given.tenant,
            roles=frozenset(Role(name) for name in given.role or [Role.INFERENCE.value]),
            digest=digest_of(key),
            account=key_id,
            limits=Limits(**{name: getattr(given, name) for name in LIMIT_NAMES}),
            created=now,
            expires=_end(now, given.expires_in),
        )
        records.append(record)
    _tell_new(key, record, given.file)
    return 0


def _rotate(given: argparse.Namespace) -> int:
    now = int(time.time())
    with changing(given.file) as records:
        old = next((record for record in records if record.id == given.id), None)
        if old is None or not old.usable(now):
            raise KeyBookError(f"there is no usable key {given.id} to rotate; ./scripts/keys.sh list shows them.")
        key, key_id = new_key()
        record = replace(
            old, id=key_id, digest=digest_of(key), created=now, expires=_end(now, given.expires_in), revoked=None
        )
        ends = now + given.overlap if old.expires is None else min(old.expires, now + given.overlap)
        records[records.index(old)] = replace(old, expires=ends)
        records.append(record)
    _tell_new(key, record, given.file)
    _tell(f"The old key {old.id} is taken until {as_time(ends)}; both have one allowance.")
    return 0


def _revoke(given: argparse.Namespace) -> int:
    with changing(given.file) as records:
        records[:] = revoked(records, given.id, now=int(time.time()))
    _tell(f"{given.id} is revoked: a running gateway refuses it within two seconds.")
    return 0


def _list(given: argparse.Namespace) -> int:
    now = time.time()
    rows = [("ID", "TENANT", "ROLES", "STATE", "LIMITS"), *(_row(record, now) for record in read(given.file))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(record: KeyRecord, now: float) -> tuple[str, str, str, str, str]:
    if record.revoked is not None:
        state = f"revoked {as_time(record.revoked)}"
    elif record.expires is not None:
        state = f"{'expires' if record.usable(now) else 'expired'} {as_time(record.expires)}"
    else:
        state = "in use"
    limits = [f"{name}={value}" for name in LIMIT_NAMES if (value := getattr(record.limits, name)) is not None]
    roles = ",".join(sorted(role.value for role in record.roles))
    return record.id, record.tenant, roles, state, " ".join(limits) or "-"


def _tell_new(key: str, record: KeyRecord, file: Path) -> None:
    print(key)
    _tell(f"Key {record.id} for {record.tenant}. It is shown this once: keep it where secrets are kept.")
    _tell(f"A gateway takes the keys of this file where it is started with {FILE_VARIABLE}={file.resolve()}")


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def _end(now: int, seconds: int | None) -> int | None:
    return None if seconds is None else now + seconds


def _tenant(text: str) -> str:
    if not is_tenant(text):
        raise argparse.ArgumentTypeError("takes 1 to 64 of A-Za-z0-9._-")
    return text


def _id(text: str) -> str:
    """An id. Who pastes the whole key means its id."""
    return id_of(text) or text


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("takes a whole number from 1")
    return int(text)


def _duration(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError("takes a number and s, m, h or d, for example 90d")
    return int(found[1]) * _SECONDS_OF[found[2]]


if __name__ == "__main__":
    raise SystemExit(main())
