"""Where each dialect's clients put their key.

=========================  =======================================================================
OpenAI, Cohere, Jina, TEI  ``Authorization: Bearer <key>``
Anthropic                  ``x-api-key: <key>``, or as above
browsers                   ``Authorization: Basic``: any user name, and the key as the password
=========================  =======================================================================

All are taken on every path. A key in the URL is not: URLs are logged on their way.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

from mesh.errors import Forbidden, Unauthenticated

_PLACES = frozenset({b"authorization", b"x-api-key"})
_HOW = "Send it as Authorization: Bearer <key>, or as x-api-key."


def credential_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The one key that a request carries.

    Raises:
        Unauthenticated: it carries none, or different ones: whoever stands before the gateway may have looked at
            another one than it would.
        Forbidden: a browser sends its user's password along with what another site has it ask.
    """
    found: str | None = None
    host = origin = b""
    is_basic = False
    for name, value in headers:
        if name in _PLACES:
            key, basic = _key_in(name, value)
            if found is not None and key != found:
                raise Unauthenticated("The request carries different keys. Send one.", reason="INVALID_API_KEY")
            found = key
            is_basic = is_basic or basic
        elif name == b"origin":
            origin = value
        elif name == b"host":
            host = value
    if not found:
        raise Unauthenticated(f"This gateway asks for an API key. {_HOW}", reason="MISSING_API_KEY")
    if is_basic and origin and origin.partition(b"://")[2] != host:
        raise Forbidden(
            "A page of another site cannot use the key that this browser knows. Send the key itself: "
            "Authorization: Bearer <key>.",
            reason="FOREIGN_ORIGIN",
        )
    return found


def _key_in(name: bytes, value: bytes) -> tuple[str, bool]:
    """The key in a header, and whether it came as a password."""
    if name == b"x-api-key":
        return value.decode("latin-1").strip(), False
    scheme, _, given = value.partition(b" ")
    scheme = scheme.lower()
    if scheme == b"bearer":
        return given.decode("latin-1").strip(), False
    if scheme == b"basic":
        return _password(given.strip()), True
    raise Unauthenticated(f"This Authorization is of a kind that is not taken here. {_HOW}", reason="INVALID_API_KEY")


def _password(given: bytes) -> str:
    try:
        return base64.b64decode(given, validate=True).decode("utf-8").partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        raise Unauthenticated(f"This Authorization cannot be read. {_HOW}", reason="INVALID_API_KEY") from None
