"""A client of Redis that connects beside the requests and repeats nothing. Needs the extra redis."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from mesh.settings import SettingsError

_CONNECTIONS = 32
_CONNECT_SECONDS = 2.0
"""Some round trips more than an operation has. Nobody waits for all of it."""


class BackgroundConnectionPool(BlockingConnectionPool):  # type: ignore[misc]  # an extra, not there for who checks
    """A pool whose connections come to be in tasks of their own: who cannot wait leaves one for the next.

    Attributes:
        wait_seconds: how long one is waited for; None means as long as it takes.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.wait_seconds: float | None = None
        self._connecting: dict[Any, asyncio.Task[None]] = {}

    async def ensure_connection(self, connection: Any) -> None:
        """Wait until it is connected. The connecting goes on when the wait ends.

        Raises:
            TimeoutError, redis.RedisError: it cannot be connected.
        """
        if connection.is_connected and connection not in self._connecting:
            try:
                if not await connection.can_read():
                    return
            except Exception:  # whatever is the matter with it, it is connected anew
                await connection.disconnect(nowait=True)
        task = self._connecting.get(connection)
        if task is None:
            task = self._connecting[connection] = asyncio.create_task(self._connect(connection))
            task.add_done_callback(lambda done: self._connected(connection, done))
        async with asyncio.timeout(self.wait_seconds):
            await asyncio.shield(task)

    async def aclose(self) -> None:
        """End what is connecting, and disconnect the others."""
        if tasks := list(self._connecting.values()):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await super().aclose()

    async def _connect(self, connection: Any) -> None:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await super().ensure_connection(connection)
        except BaseException:
            # A connection that was greeted by half is none.
            await connection.disconnect(nowait=True)
            raise

    def _connected(self, connection: Any, task: asyncio.Task[None]) -> None:
        del self._connecting[connection]
        if not task.cancelled():
            task.exception()  # was told to whoever still waited


def connect(url: str, *, wait_seconds: float | None) -> Any:
    """A client of Redis that connects at its first need, for which an operation waits ``wait_seconds`` at most.

    Raises:
        SettingsError: the library does not understand the URL, or it asks for what the store cannot use.
    """
    try:
        pool = BackgroundConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            # One clock bounds an operation as a whole: the store's.
            timeout=None,
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            # Each is a round trip more before the first answer.
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
            driver_info=None,
        )
        # Only a connection looks at most of the parameters. Making one sends nothing.
        decodes = pool.make_connection().encoder.decode_responses
    except Exception as error:
        # Its words may hold the password.
        raise SettingsError(
            "REDIS_URL cannot be read; write redis://[user:password@]host:port/number, and after a question mark only "
            "parameters of redis-py's connections, such as ssl_ca_certs."
        ) from error
    if decodes:
        raise SettingsError("REDIS_URL asks for decode_responses, and vectors are no text. Leave the parameter out.")
    pool.wait_seconds = wait_seconds
    return Redis.from_pool(pool)
