"""The file of keys: JSON, readable by its owner alone, replaced as a whole and never edited in place.

It holds hashes, so whoever reads it can ask nothing with it. A gateway only reads it; the commands of
``python -m gateway.keys`` change it, one at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.keys.records import LIMIT_NAMES, KeyRecord, Limits, Role

_VERSION = 1
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ID = re.compile(r"[0-9a-z]{1,32}")
_FIELDS = frozenset({"id", "tenant", "roles", "sha256", "account", "limits", "created", "expires", "revoked"})
_NEEDED = frozenset({"id", "tenant", "roles", "sha256", "created"})


class KeyBookError(ValueError):
    """The file cannot be read or holds something else than keys. The message is for the operator."""


def read(path: Path) -> tuple[KeyRecord, ...]:
    """The keys of a file.

    Raises:
        KeyBookError: it is not there, or is no such file; unknown fields are refused at every depth.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KeyBookError(
            f"The file of keys {path} cannot be read: {type(error).__name__}. Make one: ./scripts/keys.sh add"
        ) from error
    try:
        return parse(text)
    except KeyBookError as error:
        raise KeyBookError(f"{path}: {error}") from error


def parse(text: str) -> tuple[KeyRecord, ...]:
    """The keys in the text of a file.

    Raises:
        KeyBookError: it holds something else.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise KeyBookError("it is not JSON.") from error
    except RecursionError:
        # Without its cause: the traceback would be a thousand frames long.
        raise KeyBookError("its JSON is nested too deeply.") from None
    _expect(isinstance(document, dict) and set(document) == {"version", "keys"}, "it must hold version and keys.")
    _expect(document["version"] == _VERSION, f"only version {_VERSION} is read here.")
    _expect(isinstance(document["keys"], list), "keys must be a list.")
    records = tuple(_record(entry, number) for number, entry in enumerate(document["keys"]))
    _expect(len({record.id for record in records}) == len(records), "two keys have one id.")
    return records


def _record(entry: Any, number: int) -> KeyRecord:
    where = f"keys[{number}]"
    _expect(isinstance(entry, dict), f"{where} must be an object.")
    _refuse_unknown(entry, _FIELDS, where)
    _expect(set(entry) >= _NEEDED, f"{where} lacks {', '.join(sorted(_NEEDED - set(entry)))}.")
    key_id, account = entry["id"], entry.get("account", entry["id"])
    for name, value in (("id", key_id), ("account", account)):
        _expect(isinstance(value, str) and _ID.fullmatch(value), f"{where}.{name} is none.")
    _expect(is_tenant(entry["tenant"]), f"{where}.tenant must be 1 to 64 of A-Za-z0-9._-")
    created = _seconds(entry["created"], f"{where}.created")
    _expect(created is not None, f"{where}.created must be a time.")
    return KeyRecord(
        id=key_id,
        tenant=entry["tenant"],
        roles=_roles(entry["roles"], where),
        digest=_digest(entry["sha256"], where),
        account=account,
        limits=_limits(entry.get("limits") or {}, where),
        created=created or 0,
        expires=_seconds(entry.get("expires"), f"{where}.expires"),
        revoked=_seconds(entry.get("revoked"), f"{where}.revoked"),
    )


def is_tenant(name: object) -> bool:
    """Whether it can be a tenant's name: it ends up in logs, and in the metadata of calls."""
    return isinstance(name, str) and _TENANT.fullmatch(name) is not None


def _roles(given: Any, where: str) -> frozenset[Role]:
    known = {role.value: role for role in Role}
    right = isinstance(given, list) and given and all(isinstance(name, str) and name in known for name in given)
    _expect(right, f"{where}.roles must be a list of {', '.join(known)}.")
    return frozenset(known[name] for name in given)


def _digest(given: Any, where: str) -> bytes:
    right = isinstance(given, str) and re.fullmatch(r"[0-9a-f]{64}", given)
    _expect(right, f"{where}.sha256 must be 64 hexadecimal digits.")
    return bytes.fromhex(given)


def _limits(given: Any, where: str) -> Limits:
    _expect(isinstance(given, dict), f"{where}.limits must be an object.")
    _refuse_unknown(given, frozenset(LIMIT_NAMES), f"{where}.limits")
    for name, value in given.items():
        # JSON's true is an int to Python.
        _expect(type(value) is int and value > 0, f"{where}.limits.{name} must be a whole number above 0.")
    return Limits(**given)


def _seconds(given: Any, where: str) -> int | None:
    if given is None:
        return None
    try:
        moment = datetime.fromisoformat(given)
    except (TypeError, ValueError):
        moment = None
    _expect(moment is not None and moment.tzinfo is not None, f"{where} must be a time such as 2030-01-31T12:00:00Z.")
    return int(moment.timestamp()) if moment else None


def _refuse_unknown(entry: dict[str, Any], known: frozenset[str], where: str) -> None:
    if unknown := sorted(set(entry) - known):
        raise KeyBookError(f"{where} has no field {unknown[0][:64]}; known: {', '.join(sorted(known))}.")


def _expect(holds: object, otherwise: str) -> None:
    if not holds:
        raise KeyBookError(otherwise)


def as_text(records: Sequence[KeyRecord]) -> str:
    """The text of a file that holds these keys."""
    return json.dumps({"version": _VERSION, "keys": [_entry(record) for record in records]}, indent=2) + "\n"


def _entry(record: KeyRecord) -> dict[str, Any]:
    limits = {name: value for name in LIMIT_NAMES if (value := getattr(record.limits, name)) is not None}
    return {
        "id": record.id,
        "tenant": record.tenant,
        "roles": sorted(role.value for role in record.roles),
        "sha256": record.digest.hex(),
        "account": record.account,
        "limits": limits,
        "created": as_time(record.created),
        "expires": as_time(record.expires),
        "revoked": as_time(record.revoked),
    }


def as_time(seconds: int | None) -> str | None:
    """A moment as the file writes it."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def changing(path: Path) -> Iterator[list[KeyRecord]]:
    """The keys of a file, to be changed; written back whole when the block ends without an error.

    Who changes it at the same time waits. A file that is not there yet is made, readable by its owner alone. A crash
    leaves the old file or the new one, never half of one. Its owner, group and mode stay.

    Raises:
        KeyBookError: it is there and holds something else.
        OSError: it cannot be written, or would have another owner.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The lock is a file of its own: the one with the keys is another one after each change.
    with path.with_name(path.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        records = list(read(path)) if path.exists() else []
        yield records
        _replace(path, as_text(records))


def _replace(path: Path, text: str) -> None:
    before = path.stat() if path.exists() else None
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if before is not None:
            # A gateway that runs as another user could not read it any more, and would go on with revoked keys.
            made = os.fstat(file.fileno())
            if (made.st_uid, made.st_gid) != (before.st_uid, before.st_gid):
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            os.fchmod(file.fileno(), before.st_mode & 0o777)
        os.fsync(file.fileno())
    beside.replace(path)


def revoked(records: Sequence[KeyRecord], key_id: str, *, now: int) -> list[KeyRecord]:
    """The keys, the one with this id revoked.

    Raises:
        KeyBookError: there is none.
    """
    if all(record.id != key_id for record in records):
        raise KeyBookError(f"there is no key {key_id}; ./scripts/keys.sh list names them.")
    return [
        replace(record, revoked=now) if record.id == key_id and record.revoked is None else record for record in records
    ]
