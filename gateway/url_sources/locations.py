"""URLs, read so strictly that no two programs could understand them differently."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urljoin, urlsplit

from mesh.errors import InvalidRequest

MAX_URL_CHARACTERS = 2048
_PORTS = {"https": 443, "http": 80}
# Visible ASCII without what parsers disagree about: backslashes are slashes to a browser and nothing to others.
_PLAIN = re.compile(r"[!-\[\]-~]+")
_AUTHORITY = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:@%]+)(:[0-9]+)?")
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a document is.

    Attributes:
        scheme: "https" or "http".
        host: a name in lower case without a dot at its end, or an address as it is usually written.
        port: always said.
        target: path and query, as they are sent.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """As the Host header says it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def filename(self) -> str:
        """The path's last part, decoded; empty where there is none."""
        return PurePosixPath(unquote(self.target.partition("?")[0])).name

    def follow(self, reference: str) -> Location:
        """Where a redirect leads. Raises InvalidRequest."""
        return read_url(urljoin(f"{self.scheme}://{self.authority}{self.target}", reference))


def read_url(url: str) -> Location:
    """The location that a URL names.

    Raises:
        InvalidRequest: URL_INVALID: it is none, or one that programs differ about.
    """
    if len(url) > MAX_URL_CHARACTERS:
        raise _invalid(f"The URL is longer than {MAX_URL_CHARACTERS} characters.")
    if not _PLAIN.fullmatch(url):
        raise _invalid("The URL holds characters that must be encoded; write a name with other letters as xn--….")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _invalid("The URL cannot be read.") from None
    if parts.scheme not in _PORTS:
        raise _invalid("The URL must begin with https:// or http://.")
    if not url.lower().startswith(f"{parts.scheme}://") or not _AUTHORITY.fullmatch(parts.netloc):
        raise _invalid("Between // and the path, the URL may hold nothing but a host and a port: no user, no password.")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Location(parts.scheme, _host(parts.hostname or ""), _PORTS[parts.scheme] if port is None else port, target)


def _host(host: str) -> str:
    """A name or an address. What ends in a number is an address to every resolver, so it has to be written as one."""
    name = host.removesuffix(".")
    if ":" in name or _NUMBER.fullmatch(name.rpartition(".")[2]):
        try:
            return str(ipaddress.ip_address(name))
        except ValueError:
            raise _invalid("The URL's host is an address in an unusual form; write it in the usual one.") from None
    if not _NAME.fullmatch(name) or len(name) > 253:
        raise _invalid("The URL's host is not a name.")
    return name


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="url", reason="URL_INVALID")
