"""An engine's own account of its load is read, grows stale, and says when a further request would only wait."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from llm_service.load import FULL_SHARE, READ_EVERY_SECONDS, STALE_SECONDS, LoadWatch, is_saturated, read_load
from mesh.generation import EngineLoad
from mesh.testing import FakeClock

# As vLLM 0.32 writes it, with two data-parallel ranks.
EXPOSITION = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 4.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.25
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="128",num_gpu_blocks="2730",engine="0"} 1.0
vllm:cache_config_info{block_size="128",num_gpu_blocks="2730",engine="1"} 1.0
"""


class Published:
    """Metrics that answer, or do not."""

    def __init__(self, text: str = EXPOSITION) -> None:
        self.text = text
        self.failure: Exception | None = None

    async def fetch(self) -> str:
        """The text, or the failure."""
        if self.failure is not None:
            raise self.failure
        return self.text


def test_the_load_of_all_ranks_is_read() -> None:
    """Requests and memory add up; the fullest cache counts, since a request cannot use another's."""
    assert read_load(EXPOSITION) == EngineLoad(running=5, waiting=4, kv_used=0.5, kv_tokens=2 * 128 * 2730)


@pytest.mark.parametrize("text", ["", "# nothing\n", "tgi_queue_size 3\n", "vllm:num_requests_running 3\n"])
def test_metrics_that_tell_no_load_are_none(text: str) -> None:
    """Another engine's metrics, or half of them, are not taken for an idle engine."""
    assert read_load(text) is None


def test_what_is_no_metrics_text_is_said_so() -> None:
    """A page of something else raises rather than reads as no load."""
    with pytest.raises(ValueError, match=r".*"):
        read_load("vllm:num_requests_running{ <html>\n")


def test_a_cache_whose_size_is_not_told_is_unknown() -> None:
    """An engine that has not measured its memory yet says None where the number will stand."""
    assert read_load(EXPOSITION.replace('"2730"', '"None"')) == EngineLoad(running=5, waiting=4, kv_used=0.5)


@pytest.mark.parametrize(
    ("load", "saturated"),
    [
        (EngineLoad(running=0, waiting=0), False),
        (EngineLoad(running=16, waiting=2), False),
        (EngineLoad(running=16, waiting=3), True),
        (EngineLoad(running=0, waiting=1), True),
        (EngineLoad(running=4, waiting=0, kv_used=FULL_SHARE), True),
        (EngineLoad(running=4, waiting=0, kv_used=FULL_SHARE - 0.01), False),
    ],
)
def test_saturated_is_when_a_further_request_would_wait(load: EngineLoad, saturated: bool) -> None:
    """A short queue that fills the gaps is welcome; more than that, or a full cache, is not."""
    assert is_saturated(load) is saturated


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1"])
def test_a_load_that_cannot_be_is_not_read(value: str) -> None:
    """A figure that no count and no share can have raises as nonsense does: it would reach callers."""
    with pytest.raises(ValueError, match="bounds"):
        read_load(f"vllm:num_requests_running {value}\nvllm:num_requests_waiting 0\n")


async def test_a_reading_lasts_while_it_is_fresh() -> None:
    """An engine that stops answering is soon of unknown load, and of known load again when it answers."""
    clock, published = FakeClock(), Published()
    watch = LoadWatch(published.fetch, clock=clock)

    def known() -> tuple[bool, bool]:
        return watch.load is not None, any(watch.families())

    assert known() == (False, False)
    await watch.read()
    published.failure = httpx.ReadTimeout("slow")
    await watch.read()
    assert known() == (True, True)
    clock.advance(STALE_SECONDS + 0.1)
    assert known() == (False, False)
    published.failure = None
    await watch.read()
    assert known() == (True, True)


async def test_only_the_engines_own_metrics_are_passed_on() -> None:
    """Names that this process has too would stand twice in a scrape, which is then refused as a whole."""
    published = Published(
        "# TYPE process_open_fds gauge\nprocess_open_fds 7\n" + EXPOSITION + "http_requests_total 3\n"
    )
    watch = LoadWatch(published.fetch)
    await watch.read()
    families = {family.name: family for family in watch.families()}
    assert all(name.startswith("vllm:") for name in families)
    assert families["vllm:num_requests_running"].type == "gauge"
    assert len(families["vllm:num_requests_running"].samples) == 2


async def test_what_cannot_be_read_ends_no_watch() -> None:
    """Readings go on after one that was nonsense, and after one that failed in a way that nobody thought of."""
    pauses: list[float] = []
    published = Published("vllm:num_requests_running{ <html>\n")
    published.failure = RuntimeError("nobody thought of it")

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if published.failure is None:
            published.text = EXPOSITION
        published.failure = None
        if len(pauses) == 3:
            raise asyncio.CancelledError

    watch = LoadWatch(published.fetch, sleep=sleep)
    with pytest.raises(asyncio.CancelledError):
        await watch.run()
    assert pauses == [READ_EVERY_SECONDS] * 3
    assert watch.load is not None
