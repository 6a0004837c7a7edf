"""A model capability's life: load off the event loop, warm up, answer the canary, stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from inference.loading import LoadedModel
from mesh.deadline import Deadline
from mesh.errors import Unavailable
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

_WARM_UP_SECONDS = 120.0
_CANARY_SECONDS = 3600.0
"""No limit of its own: a canary may have to wait for one long item, and the watchdog knows for how long it did."""


class Served(Protocol):
    """What answers requests once the model is loaded."""

    @property
    def loaded(self) -> LoadedModel:
        """The model."""
        ...

    def start(self) -> None:
        """Start the engine's thread, on the event loop."""
        ...

    async def prove(self, *, deadline: Deadline) -> None:
        """One real inference, before whatever waits for the engine."""
        ...

    def progress(self) -> float:
        """Seconds for which admitted work has waited without progress; 0.0 when idle."""
        ...

    def occupied(self) -> bool:
        """Whether the engine computes a batch now that is no canary."""
        ...

    def failures(self) -> int:
        """How many batches the engine failed since it last computed one; 0 when all is well."""
        ...

    async def stop(self) -> None:
        """Finish what was admitted and end the engine's thread."""
        ...


S = TypeVar("S", bound=Served)


class ModelLife(Generic[S]):
    """Holds what serves once it is there; its methods are those that ``mesh.serving.Capability`` wants.

    Args:
        load: loads the model and makes what serves it. It blocks, so it runs on a thread.
        capability: name for log lines and messages.
    """

    def __init__(self, load: Callable[[], S], *, capability: str) -> None:
        self._load = load
        self._capability = capability
        self._served: S | None = None

    @property
    def served(self) -> S:
        """What answers requests.

        Raises:
            Unavailable: the model is still loading.
        """
        if self._served is None:
            raise Unavailable(f"The {self._capability} model is still loading.", reason="WARMING_UP", retry_after=1.0)
        return self._served

    async def start(self) -> None:
        """Load the model and run one real inference.

        Raises:
            ModelUnusable: the model is missing, damaged or of the wrong kind.
        """
        served = await asyncio.to_thread(self._load)
        served.start()
        await served.prove(deadline=Deadline.after(_WARM_UP_SECONDS))
        self._served = served
        model, verdict = served.loaded.model, served.loaded.verdict
        log.info(
            f"{self._capability} serves",
            extra=fields(
                model=model.name,
                source=model.source.value,
                engine=verdict.engine,
                device=verdict.device,
                min_cosine=round(verdict.min_cosine, 6),
            ),
        )

    async def canary(self) -> None:
        """One real inference."""
        await self.served.prove(deadline=Deadline.after(_CANARY_SECONDS))

    def progress(self) -> float:
        """Seconds for which admitted work has waited without progress; 0.0 when idle."""
        return self._served.progress() if self._served is not None else 0.0

    def occupied(self) -> bool:
        """Whether the engine computes a batch now that is no canary."""
        return self._served is not None and self._served.occupied()

    def failures(self) -> int:
        """How many batches the engine failed since it last computed one; 0 when all is well."""
        return self._served.failures() if self._served is not None else 0

    async def stop(self) -> None:
        """Finish what was admitted and end the engine's thread."""
        if self._served is not None:
            await self._served.stop()
