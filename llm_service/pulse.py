"""Feels an engine's pulse once a second: is its door open, and does it work on what it owes?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from llm_service.silence import SilenceWatch
from mesh.errors import MeshError
from mesh.telemetry import get_logger

log = get_logger(__name__)

BEAT_SECONDS = 1.0
SILENT_BEATS = 2
LATELY_SECONDS = 2.0
"""What was written so lately is a sign of life, from a door that has no time for its health route."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """What the pulse is felt of, and what is done about it.

    Attributes:
        answers: whether the engine's health route answers, within its own time limit.
        cpu_seconds: processor time that the engine has used so far; None where the system does not say.
        unhealthy: None while an engine is up; nothing is felt of one that is being restarted.
        restart: ends the engine for the reason given; the supervision starts the next.
    """

    answers: Callable[[], Awaitable[bool]]
    cpu_seconds: Callable[[], Awaitable[float | None]]
    unhealthy: Callable[[], MeshError | None]
    restart: Callable[[str], None]


async def feel_pulse(
    patient: Patient, silence: SilenceWatch, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Restart an engine that hangs, for ever.

    A busy engine computes on a thread and still answers its health route; one that does not answer it twice, and
    writes nothing either, is stopped, or blocked as a whole. With a thousand streams its door may be too busy for the
    health route: what it writes tells as much. One that answers there may still hang where it computes: see
    `SilenceWatch`.
    """
    silent = 0
    while True:
        await sleep(BEAT_SECONDS)
        if patient.unhealthy() is not None:
            silent = 0
            continue
        try:
            # Side by side: a stopped engine's silence must not delay what its processor time tells.
            answers, hangs = await asyncio.gather(patient.answers(), _hangs(patient, silence))
        except Exception:
            log.exception("the engine's pulse could not be felt")  # the next beat may: nobody else would see it hang
            continue
        silent = 0 if answers or silence.heard_within(LATELY_SECONDS) else silent + 1
        if hangs is not None:
            patient.restart(hangs)
        elif silent >= SILENT_BEATS:
            patient.restart("its process hangs")


async def _hangs(patient: Patient, silence: SilenceWatch) -> str | None:
    return silence.hangs(await patient.cpu_seconds() if silence.owes else None)
