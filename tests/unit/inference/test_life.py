"""A model's life: nothing is served before it is proved, and a failed load stays a failure."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from inference.life import ModelLife
from inference.loading import LoadedModel
from inference.testing import fake_loaded_model
from mesh.deadline import Deadline
from mesh.errors import Internal, ModelUnusable, Unavailable


class FakeServed:
    """Records what its life asks of it; ``failure`` is what proving raises."""

    def __init__(self, path: Path, failure: Exception | None = None) -> None:
        self.loaded: LoadedModel = fake_loaded_model(path)
        self.calls: list[str] = []
        self._failure = failure

    def start(self) -> None:
        """See Served."""
        self.calls.append("start")

    async def prove(self, *, deadline: Deadline) -> None:
        """See Served."""
        deadline.require()
        self.calls.append("prove")
        if self._failure is not None:
            raise self._failure

    def progress(self) -> float:
        """See Served."""
        return 7.0

    def occupied(self) -> bool:
        """See Served."""
        return True

    def failures(self) -> int:
        """See Served."""
        return 3

    async def stop(self) -> None:
        """See Served."""
        self.calls.append("stop")


async def test_a_whole_life(tmp_path: Path) -> None:
    """Load off the event loop, start, prove; then canaries; then stop."""
    threads: list[threading.Thread] = []
    served = FakeServed(tmp_path)

    def load() -> FakeServed:
        threads.append(threading.current_thread())
        return served

    life = ModelLife(load, capability="test")
    assert life.progress() == 0.0
    assert not life.occupied()
    with pytest.raises(Unavailable) as refused:
        _ = life.served
    assert refused.value.reason == "WARMING_UP"
    await life.start()
    assert threads != [threading.main_thread()]
    assert life.served is served
    assert life.progress() == 7.0
    assert life.occupied()
    assert life.failures() == 3
    await life.canary()
    await life.stop()
    assert served.calls == ["start", "prove", "prove", "stop"]


async def test_what_cannot_be_proved_is_not_served(tmp_path: Path) -> None:
    """A model that loads and cannot compute serves nobody."""
    life = ModelLife(lambda: FakeServed(tmp_path, Internal("broken")), capability="test")
    with pytest.raises(Internal):
        await life.start()
    with pytest.raises(Unavailable):
        _ = life.served


async def test_a_failed_load_can_be_stopped() -> None:
    """Stopping a worker whose model was refused is not an error."""

    def load() -> FakeServed:
        raise ModelUnusable("missing", reason="MODEL_NOT_FOUND")

    life = ModelLife(load, capability="test")
    with pytest.raises(ModelUnusable):
        await life.start()
    await life.stop()
    assert life.progress() == 0.0
