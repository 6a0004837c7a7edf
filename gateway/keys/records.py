"""What is known of a key: whose it is, what it may ask and how much, and until when. Never the key itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What a key is for. A key may have both roles."""

    INFERENCE = "inference"
    """The APIs: embedding, reranking, chunking, language models."""
    OPERATOR = "operator"
    """How the mesh is: status, metrics, GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a key may ask; None means as much as there is.

    Attributes:
        requests_per_minute: as many at once after a quiet minute, then evenly.
        tokens_per_minute: the same for tokens, read and written.
        max_concurrent_requests: most requests in progress.
        max_body_bytes: largest body of a request.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent_requests: int | None = None
    max_body_bytes: int | None = None

    @property
    def counted(self) -> bool:
        """Whether anything has to be counted for them."""
        return not (self.requests_per_minute is self.tokens_per_minute is self.max_concurrent_requests is None)

    def or_else(self, others: Limits) -> Limits:
        """These, and what they leave open from ``others``."""
        return Limits(
            **{
                name: getattr(others, name) if getattr(self, name) is None else getattr(self, name)
                for name in LIMIT_NAMES
            }
        )

    def bytes_within(self, most: int) -> int:
        """The smaller of ``most`` and what a body of this key may have."""
        return most if self.max_body_bytes is None else min(most, self.max_body_bytes)


LIMIT_NAMES = ("requests_per_minute", "tokens_per_minute", "max_concurrent_requests", "max_body_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """One key.

    Attributes:
        id: names it in logs and to operators.
        tenant: whose it is. Workers and the log are told, and what is kept of a tenant is given to no other one.
        roles: what it may ask.
        digest: the key's SHA-256.
        account: under which name its requests are counted: the id of the first key of a rotation, so that old and new
            have one allowance between them.
        limits: how much it may ask, as far as it says so itself.
        created: when it was made, in seconds since 1970.
        expires: from when on it is refused; None means never.
        revoked: when it was revoked; None means that it was not.
    """

    id: str
    tenant: str
    roles: frozenset[Role]
    digest: bytes
    account: str
    limits: Limits
    created: int
    expires: int | None = None
    revoked: int | None = None

    def usable(self, now: float) -> bool:
        """Whether it opens anything at ``now``, in seconds since 1970."""
        return self.revoked is None and (self.expires is None or now < self.expires)
