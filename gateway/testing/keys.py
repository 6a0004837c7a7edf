"""A file of keys for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.keys.book import changing
from gateway.keys.form import digest_of, new_key
from gateway.keys.records import KeyRecord, Limits, Role

_CREATED = 1_700_000_000


class KeyFile:
    """A file of keys that a test fills. It is not there before the first one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, *roles: Role, tenant: str = "team", account: str = "", **given: Any) -> str:
        """Write one more key, for inference unless told otherwise; returns it.

        Args:
            roles: what it may ask.
            tenant: whose it is.
            account: on which account it is counted; its own unless given.
            given: its limits by name, and ``expires`` and ``revoked`` in seconds since 1970.
        """
        key, key_id = new_key()
        ends = {name: given.pop(name, None) for name in ("expires", "revoked")}
        record = KeyRecord(
            id=key_id,
            tenant=tenant,
            roles=frozenset(roles or (Role.INFERENCE,)),
            digest=digest_of(key),
            account=account or key_id,
            limits=Limits(**given),
            created=_CREATED,
            **ends,
        )
        with changing(self.path) as records:
            records.append(record)
        return key


def bearer(key: str) -> dict[str, str]:
    """The header that most clients send."""
    return {"authorization": f"Bearer {key}"}
