"""What an engine says of its own load, in the Prometheus text that vLLM publishes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable

import httpx
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from mesh.clock import Clock, monotonic
from mesh.generation import EngineLoad
from mesh.telemetry import get_logger

log = get_logger(__name__)

READ_EVERY_SECONDS = 0.5
STALE_SECONDS = 10.0
"""A reading older than this tells nothing: what can be known without it is used instead."""
FULL_SHARE = 0.95
"""Of the key-value cache: beyond it an engine interrupts requests that it had begun, and computes them again."""

RUNNING_NAME = "vllm:num_requests_running"
WAITING_NAME = "vllm:num_requests_waiting"
_KV_USED = "vllm:kv_cache_usage_perc"
_KV_SIZE = "vllm:cache_config_info"
_OF_THE_ENGINE = re.compile(r"(# (HELP|TYPE) )?vllm:")
_WANTED = (RUNNING_NAME, WAITING_NAME, _KV_USED, _KV_SIZE)


def is_saturated(load: EngineLoad) -> bool:
    """Whether a further request would only wait in an engine of that load, or push out one that runs.

    A few that wait are welcome: they fill the gaps until the next reading.
    """
    return load.waiting > load.running // 8 or (load.kv_used or 0.0) >= FULL_SHARE


def read_load(exposition: str) -> EngineLoad | None:
    """The load in an engine's metrics, summed over its data-parallel ranks; None where they hold none.

    Raises:
        ValueError: this is no Prometheus text.
    """
    # Of some 700 lines four are wanted; the parser's time for the others is better spent on requests.
    lines = "\n".join(line for line in exposition.splitlines() if line.startswith(_WANTED))
    found: dict[str, list[float]] = {name: [] for name in _WANTED}
    for family in text_string_to_metric_families(lines + "\n"):
        for sample in family.samples:
            if sample.name not in found:
                continue
            value = _cache_tokens(sample.labels) if sample.name == _KV_SIZE else sample.value
            if not 0 <= value < 2**32:  # nor is NaN
                raise ValueError(f"{sample.name} is out of all bounds")
            found[sample.name].append(value)
    if not found[RUNNING_NAME] or not found[WAITING_NAME]:
        return None
    return EngineLoad(
        running=int(sum(found[RUNNING_NAME])),
        waiting=int(sum(found[WAITING_NAME])),
        kv_used=max(found[_KV_USED], default=None),
        kv_tokens=int(sum(found[_KV_SIZE])),
    )


def _cache_tokens(labels: dict[str, str]) -> float:
    """Tokens that a cache holds, by the labels of its description; 0 where they do not say."""
    try:
        return float(int(labels["num_gpu_blocks"]) * int(labels["block_size"]))
    except (KeyError, ValueError):
        return 0.0


class LoadWatch:
    """Keeps the latest reading of an engine's metrics.

    Args:
        fetch: the metrics' text; raises httpx.HTTPError where the engine does not answer.
        clock: source of time.
        sleep: waits between readings.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[str]],
        *,
        clock: Clock = monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._sleep = sleep
        self._exposition = ""
        self._load: EngineLoad | None = None
        self._read_at = float("-inf")
        self._readable = True

    @property
    def load(self) -> EngineLoad | None:
        """The latest reading; None where it is stale or was never had."""
        return self._load if self._is_fresh() else None

    def families(self) -> Iterable[Metric]:
        """What the engine published of itself at the latest reading; empty where it is stale.

        Its process's own figures are left out: they bear the names of this process's.
        """
        if not self._is_fresh():
            return ()
        lines = "\n".join(line for line in self._exposition.splitlines() if _OF_THE_ENGINE.match(line))
        return text_string_to_metric_families(lines + "\n")

    async def run(self) -> None:
        """Read for ever."""
        while True:
            try:
                await self.read()
            except Exception:  # the watch itself must not end, or the load would stay unknown for ever
                log.exception("the engine's load could not be read")
            await self._sleep(READ_EVERY_SECONDS)

    async def read(self) -> None:
        """Read once. An engine that does not answer leaves the last reading to grow stale."""
        try:
            exposition = await self._fetch()
            load = read_load(exposition)
        except httpx.HTTPError:
            return  # the pulse tells what is wrong with the engine, and does something about it
        except ValueError:
            if self._readable:  # said once, not twice a second
                log.warning("the engine's metrics cannot be read")
            self._readable = False
            return
        self._readable = True
        self._exposition, self._load, self._read_at = exposition, load, self._clock()

    def _is_fresh(self) -> bool:
        return self._clock() - self._read_at <= STALE_SECONDS
