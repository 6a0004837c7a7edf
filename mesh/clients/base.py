"""What all clients share: a hop, a stub, and the sync face over the async one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from mesh.channel import Target
from mesh.errors import InvalidRequest
from mesh.hop import Hop, HopSettings
from mesh.resilience import CircuitBreaker
from mesh.transport import AioTransport, BlockingTransport, Transport, iterate, run_to_end

if TYPE_CHECKING:  # cryptography is not loaded for a client without TLS
    from mesh.tls.client import ClientTls

T = TypeVar("T")


@contextmanager
def whole_characters() -> Iterator[None]:
    """Around the making of a message: a text with half a surrogate pair cannot be sent, and is the caller's to mend."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"A text holds half of a character (U+{ord(error.object[error.start]):04X} at position {error.start}); "
            "send whole Unicode characters, for example by text.encode('utf-8', 'replace').decode().",
            reason="INVALID_UNICODE",
        ) from None


class AsyncClient:
    """Base of the async clients. Use it as an async context manager, or call ``close``.

    Args:
        target: "host:port", several separated by commas, or "dns:///name:port".
        circuit_breaker: one of your own, for example to share or to tune it; otherwise made from ``hop``.
        hop: limits and times of the hop.
        tls: certificates, by `mesh.clients.ClientTls`; left out, the connection is plaintext.
        name: of the hop in metrics and status, where one service is reached by several.
        transport: how to wait; leave it out.
    """

    hop_name: ClassVar[str]
    service: ClassVar[str]
    stub_class: ClassVar[Any]
    idempotent_methods: ClassVar[tuple[str, ...]] = ()

    def __init__(  # noqa: PLR0913 - all but the target is optional, and given by name
        self,
        target: Target,
        *,
        circuit_breaker: CircuitBreaker | None = None,
        hop: HopSettings | None = None,
        tls: ClientTls | None = None,
        name: str = "",
        transport: Transport | None = None,
    ) -> None:
        self.hop = Hop(
            name or self.hop_name,
            self.service,
            target,
            transport=transport or AioTransport(),
            settings=hop,
            circuit_breaker=circuit_breaker,
            tls=tls,
            idempotent_methods=self.idempotent_methods,
        )
        self._made_stub: Any = None

    @property
    def _stub(self) -> Any:
        if self._made_stub is None:
            self._made_stub = self.stub_class(self.hop.channel)
        return self._made_stub

    def start(self) -> None:
        """Connect and probe now instead of at the first call."""
        self.hop.start()

    async def close(self) -> None:
        """End the probe and every call."""
        await self.hop.close()
        self._made_stub = None

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


AsyncClientT = TypeVar("AsyncClientT", bound=AsyncClient)


class SyncClient(Generic[AsyncClientT]):
    """Base of the sync clients: the async client on a transport that blocks. Safe to use from several threads.

    Use it as a context manager, or call ``close``. Arguments as for AsyncClient.
    """

    async_class: ClassVar[type[Any]]

    def __init__(
        self,
        target: Target,
        *,
        circuit_breaker: CircuitBreaker | None = None,
        hop: HopSettings | None = None,
        tls: ClientTls | None = None,
    ) -> None:
        self._client: AsyncClientT = self.async_class(
            target, circuit_breaker=circuit_breaker, hop=hop, tls=tls, transport=BlockingTransport()
        )

    @property
    def hop(self) -> Hop:
        """The hop, for its status."""
        return self._client.hop

    def start(self) -> None:
        """Connect and probe now instead of at the first call."""
        self._client.start()

    def close(self) -> None:
        """End the probe and every call."""
        run_to_end(self._client.close())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return run_to_end(work)

    def _iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        return iterate(items)
