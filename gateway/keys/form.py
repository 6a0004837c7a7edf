"""What a key looks like: ``mesh_<id>_<secret><checksum>``.

The prefix lets scanners for leaked secrets find one. The id is public: logs hold it, and operators name keys by it.
The checksum tells a key that was cut short or mistyped from one that is not known, without asking anybody.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID_ALPHABET = string.digits + string.ascii_lowercase
_ID_LENGTH = 10
_SECRET_LENGTH = 43
"""Of 62 letters: 256 bits, which nobody guesses. So a plain hash keeps it, and no slow one needs to."""
_CHECKSUM_LENGTH = 6
ID_PLACE = slice(5, 5 + _ID_LENGTH)
"""Where a key has its id."""
KEY_LENGTH = ID_PLACE.stop + 1 + _SECRET_LENGTH + _CHECKSUM_LENGTH
"""Letters of a key."""
_FORM = re.compile(
    rf"(mesh_([{_ID_ALPHABET}]{{{_ID_LENGTH}}})_[{_BASE62}]{{{_SECRET_LENGTH}}})([{_BASE62}]{{{_CHECKSUM_LENGTH}}})"
)


def new_key() -> tuple[str, str]:
    """A fresh key and its id. The key is told to its owner once, and is kept nowhere."""
    key_id = _random(_ID_ALPHABET, _ID_LENGTH)
    body = f"mesh_{key_id}_{_random(_BASE62, _SECRET_LENGTH)}"
    return body + _checksum(body), key_id


def id_of(key: str) -> str | None:
    """The id within a key; None where it is none that this mesh has made."""
    found = _FORM.fullmatch(key)
    if found is None or _checksum(found[1]) != found[3]:
        return None
    return found[2]


def digest_of(key: str) -> bytes:
    """What is kept of a key: SHA-256, 32 bytes."""
    return hashlib.sha256(key.encode("ascii", "replace")).digest()


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode("ascii"))
    letters = ""
    for _ in range(_CHECKSUM_LENGTH):
        number, rest = divmod(number, len(_BASE62))
        letters = _BASE62[rest] + letters
    return letters
