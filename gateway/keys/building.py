"""From settings to the layers that look at keys, or to none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from gateway.keys.settings import KeysSettings
from mesh.settings import SettingsError

if TYPE_CHECKING:
    from gateway.keys.guard import Guard
    from gateway.keys.meter import Meter
    from gateway.keys.ring import KeyRing
    from gateway.middleware import Layer
    from gateway.settings import GatewaySettings


@dataclass(slots=True)
class Keys:
    """What a gateway with keys has more than one without."""

    ring: KeyRing
    guard: Guard
    meter: Meter
    _following: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow the file, and begin what the meter does beside the requests; called on the event loop."""
        self._following = asyncio.get_running_loop().create_task(self.ring.follow())
        self.meter.start()

    async def close(self) -> None:
        """End both."""
        if self._following is not None:
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following
        await self.meter.close()

    def status(self) -> dict[str, Any]:
        """For the status page. It names no key."""
        return {"usable": len(self.ring), "limits_in": self.meter.where, "file_problem": self.ring.problem}


def with_keys(settings: GatewaySettings) -> Keys | None:
    """The keys that the settings name; None where no key is asked for.

    Raises:
        SettingsError: there are none and others than this machine reach the address; the file cannot be read or holds
            no key; Redis is asked for, and its library is not installed or cannot read the URL.
    """
    if missing := settings.keys.missing_at(settings.published_at or settings.host):
        raise SettingsError(missing)
    if settings.keys.file is None:
        return None
    # A gateway without keys loads nothing of this.
    from gateway.keys.book import KeyBookError
    from gateway.keys.guard import Guard
    from gateway.keys.ring import KeyRing

    try:
        ring = KeyRing(settings.keys.file, settings.keys.limits.as_limits())
    except KeyBookError as error:
        raise SettingsError(f"GATEWAY_KEYS__FILE: {error}") from error
    return Keys(ring, Guard(ring), _meter(settings.keys, settings.vector_cache.redis_url.get_secret_value()))


def _meter(settings: KeysSettings, cache_url: str) -> Meter:
    from gateway.keys.meter import MemoryMeter

    if settings.limits_in == "memory":
        return MemoryMeter()
    try:
        from gateway.vector_cache.redis_client import connect
    except ImportError as error:
        raise SettingsError(
            "GATEWAY_KEYS__LIMITS_IN=redis needs the extra redis: pip install 'torch-isolation-mesh[gateway,redis]'."
        ) from error
    from gateway.keys.shared_meter import SharedMeter

    url = settings.redis_url.get_secret_value() if settings.redis_url else cache_url
    seconds = settings.redis_timeout_seconds
    return SharedMeter(connect(url, wait_seconds=seconds / 2), timeout_seconds=seconds)


def guarding(keys: Keys | None) -> Sequence[Layer]:
    """The layer that refuses who has no key."""
    if keys is None:
        return ()
    from gateway.keys.guard import Guarded

    return (partial(Guarded, guard=keys.guard),)


def rationing(keys: Keys | None) -> Sequence[Layer]:
    """The layer that bounds how much a key may ask."""
    if keys is None:
        return ()
    from gateway.keys.rations import Rationed

    return (partial(Rationed, meter=keys.meter),)
