"""Counts in a Redis, so that several gateways have one allowance between them. Needs the extra redis.

What is kept of an account is one hash: ``r`` and ``t``, the moments until which its requests and tokens are spoken for
(`rates`), and for each gateway how many requests it has in progress. A gateway tells that number and no difference, so
a message that is lost is made up for by the next; and it tells it again while there are any, so a gateway that died is
forgotten after `LEASE_SECONDS`. All is judged by the clock of the Redis.

While the Redis is away each gateway counts by itself: every one then gives a whole allowance, and nobody is refused
because a Redis is.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from prometheus_client import Counter, Gauge

from gateway.guarded_redis import GuardedRedis
from gateway.keys.meter import Bound, Grant, MemoryMeter
from gateway.keys.records import Limits
from mesh.clock import Clock, monotonic
from mesh.errors import MeshError
from mesh.resilience import BreakerState

# Here, so that a gateway that was told to count in memory has no series that says 0.
KEYS_LIMITS_SHARED = Gauge(
    "mesh_keys_limits_shared", "1 while limits are counted in Redis; 0 while each gateway counts by itself."
)
KEYS_REDIS_ERRORS = Counter(
    "mesh_keys_redis_errors_total",
    "Operations on Redis that failed, by reason, or were left out while the breaker is open (CIRCUIT_OPEN).",
    ["operation", "error"],
)

LEASE_SECONDS = 30.0
TELL_SECONDS = 10.0
"""Three times within a lease, so that one message may be lost."""
_PREFIX = "mesh:keys:1:"
_MICRO = 1_000_000

_COMMON = """
local key, gateway, count, turn, lease = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local kept, others, told = redis.call('HGETALL', key), 0, -1
local until_r, until_t, lives = 0, 0, now + lease
for i = 1, #kept, 2 do
  local name, value = kept[i], kept[i + 1]
  if name == 'r' then until_r = tonumber(value)
  elseif name == 't' then until_t = tonumber(value)
  else
    local n, said, ends = string.match(value, '(%d+):(%d+):(%d+)')
    if name == gateway then told = tonumber(said)
    elseif tonumber(ends) > now then others = others + tonumber(n)
    else redis.call('HDEL', key, name) end
  end
end
local function whole(number) return string.format('%.0f', math.floor(number)) end
local function tell()
  if turn > told then
    redis.call('HSET', key, gateway, count .. ':' .. turn .. ':' .. whole(now + lease))
  end
  lives = math.max(lives, until_r, until_t)
  redis.call('PEXPIRE', key, whole((lives - now) / 1000 + 1000))
end
"""
_TAKE = (
    _COMMON
    + """
local every_r, every_t, tokens, most = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local window = 60000000
if every_r > 0 then
  until_r = math.max(until_r, now) + every_r
  if until_r - now > window then return {1, whole(until_r - now - window), '0', '0'} end
end
if every_t > 0 then
  until_t = math.max(until_t, now) + every_t * tokens
  if until_t - now > window then return {2, whole(until_t - now - window), '0', '0'} end
end
if most > 0 and others + count > most then return {3, '0', '0', '0'} end
if every_r > 0 then redis.call('HSET', key, 'r', whole(until_r)) end
if every_t > 0 then redis.call('HSET', key, 't', whole(until_t)) end
tell()
return {0, '0', whole(until_r - now), whole(until_t - now)}
"""
)
_SETTLE = (
    _COMMON
    + """
local every_t, difference = tonumber(ARGV[5]), tonumber(ARGV[6])
if every_t > 0 and difference ~= 0 then
  if difference > 0 then until_t = math.max(until_t, now) end
  until_t = math.max(0, until_t + every_t * difference)
  redis.call('HSET', key, 't', whole(until_t))
end
tell()
return 0
"""
)
_BOUNDS: tuple[Bound | None, ...] = (None, "requests", "tokens", "concurrency")


@dataclass(slots=True)
class _Owed:
    """What Redis is yet to be told of an account."""

    limits: Limits
    tokens: int = 0


class SharedMeter:
    """See Meter.

    Args:
        client: as `gateway.vector_cache.redis_client.connect` makes it.
        timeout_seconds: for one operation; after it, this gateway counts by itself.
        clock: source of time for what is counted here.
    """

    def __init__(self, client: Any, *, timeout_seconds: float, clock: Clock = monotonic) -> None:
        self._take_script = client.register_script(_TAKE)
        self._settle_script = client.register_script(_SETTLE)
        self._client = client
        self._guard = GuardedRedis(
            "redis_keys",
            timeout_seconds=timeout_seconds,
            errors=KEYS_REDIS_ERRORS,
            meanwhile="each gateway counts its keys' limits by itself",
            clock=clock,
        )
        self.breaker = self._guard.breaker("redis_keys")
        self._local = MemoryMeter(clock)
        self._gateway = secrets.token_hex(8)
        self._turn = 0
        self._owed: dict[str, _Owed] = {}
        self._telling: asyncio.Task[None] | None = None
        self._heart: asyncio.Task[None] | None = None
        self._active: dict[str, Limits] = {}
        KEYS_LIMITS_SHARED.set(1)

    @property
    def where(self) -> str:
        """See Meter."""
        away = self.breaker.snapshot().state is not BreakerState.CLOSED
        return "this gateway's memory, since Redis is away" if away else "Redis"

    async def take(self, account: str, limits: Limits, tokens: int) -> Grant:
        """See Meter."""
        count = self._local.begin(account)
        self._active[account] = limits
        grant = None
        try:
            grant = await self._ask(account, limits, tokens, count)
            if grant is None:
                grant = self._local.draw(account, limits, tokens)
        finally:
            if grant is None or grant.refused is not None:
                self._end(account)
        return grant

    def give_back(self, grant: Grant, used: int) -> None:
        """See Meter. Redis is told beside the requests: of all that ended meanwhile at once."""
        self._end(grant.account)
        owed = self._owed.setdefault(grant.account, _Owed(grant.limits))
        if grant.shared:
            owed.tokens += used - grant.reserved
        else:
            self._local.settle(grant, used)
        self._tell_soon()

    def start(self) -> None:
        """See Meter."""
        self._heart = asyncio.get_running_loop().create_task(self._beat())

    async def close(self) -> None:
        """See Meter. What is owed is told first, so that places in progress are free for the other gateways."""
        if self._heart is not None:
            self._heart.cancel()
        if self._telling is not None:
            await self._telling
        with suppress(MeshError):
            await self._guard.within_time(self._client.aclose())

    def _end(self, account: str) -> None:
        if self._local.end(account) == 0:
            self._active.pop(account, None)

    async def _ask(self, account: str, limits: Limits, tokens: int, count: int) -> Grant | None:
        """What Redis says; None while it is away."""
        arguments = (
            *self._told(count),
            _every(limits.requests_per_minute),
            _every(limits.tokens_per_minute),
            tokens,
            limits.max_concurrent_requests or 0,
        )
        script = partial(self._take_script, keys=[_PREFIX + account], args=arguments)
        said = await self._guard.guarded("take", self.breaker, partial(_read, script))
        KEYS_LIMITS_SHARED.set(said is not None)
        if said is None:
            return None
        code, wait, ahead_requests, ahead_tokens = said
        grant = Grant(account, limits, 0, shared=True)
        if code:
            return replace(grant, refused=_BOUNDS[code], retry_after=wait / _MICRO if wait else None)
        return replace(
            grant,
            reserved=tokens,
            requests_left=_left(ahead_requests, limits.requests_per_minute),
            tokens_left=_left(ahead_tokens, limits.tokens_per_minute),
        )

    def _told(self, count: int) -> tuple[object, ...]:
        """What every message says of this gateway. Of two that overtake each other the later one holds."""
        self._turn += 1
        return self._gateway, count, self._turn, round(LEASE_SECONDS * _MICRO)

    def _tell_soon(self) -> None:
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        while self._owed:
            owed, self._owed = self._owed, {}
            # What is lost here are tokens to be put right; how many are in progress is told again.
            await self._guard.guarded("settle", self.breaker, partial(self._settle, owed))

    async def _settle(self, owed: dict[str, _Owed]) -> bool:
        async with self._client.pipeline(transaction=False) as pipeline:
            for account, each in owed.items():
                told = self._told(self._local.in_progress(account))
                arguments = (*told, _every(each.limits.tokens_per_minute), each.tokens)
                await self._settle_script(keys=[_PREFIX + account], args=arguments, client=pipeline)
            await pipeline.execute()
        return True

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            for account, limits in self._active.items():
                self._owed.setdefault(account, _Owed(limits))
            if self._owed:
                self._tell_soon()


async def _read(script: Callable[[], Awaitable[Any]]) -> tuple[int, int, int, int]:
    """The four numbers that the script answers with.

    Raises:
        TypeError, ValueError: it was answered with something else.
    """
    numbers = tuple(int(each) for each in await script())
    if len(numbers) != 4 or not 0 <= numbers[0] < len(_BOUNDS):
        raise ValueError("the script was answered with something else than its four numbers")
    return numbers


def _every(per_minute: int | None) -> str:
    """Microseconds for each of so many a minute, as the scripts read it; 0 where nobody counts them."""
    return "0" if per_minute is None else repr(60 * _MICRO / per_minute)


def _left(ahead_microseconds: int, per_minute: int | None) -> int | None:
    """How many more fit into the minute of which so much is spoken for."""
    if per_minute is None:
        return None
    return max(0, int((60 * _MICRO - ahead_microseconds) * per_minute / (60 * _MICRO) + 1e-6))
