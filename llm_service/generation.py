"""What passes between worker and engine: the shared vocabulary of `mesh.generation`, and an engine's own events."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.generation import (
    MAX_MESSAGES,
    Ending,
    Event,
    Finish,
    FinishReason,
    Generation,
    Header,
    Load,
    Message,
    Piece,
    Role,
    Sampling,
    Timings,
    TokenCount,
    Usage,
    check,
    check_input,
)

__all__ = [
    "MAX_MESSAGES",
    "Accepted",
    "Ended",
    "Ending",
    "EngineEvent",
    "Event",
    "Finish",
    "FinishReason",
    "Generation",
    "Header",
    "Load",
    "Message",
    "Piece",
    "Role",
    "Sampling",
    "Timings",
    "TokenCount",
    "Usage",
    "check",
    "check_input",
]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The engine has begun: its first event. ``usage`` is the prompt's, where the engine tells it at once."""

    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """All choices are whole: the last event. ``usage`` is None where the engine does not count."""

    endings: tuple[Ending, ...]
    usage: Usage | None

    @classmethod
    def one(cls, reason: FinishReason, usage: Usage | None = None, *, stop: str = "") -> Ended:
        """The end of an only choice."""
        return cls((Ending(reason, stop),), usage)

    @property
    def reason(self) -> FinishReason:
        """Why the first choice ended."""
        return self.endings[0].reason


EngineEvent = Accepted | Piece | Ended
