"""What one hop can be told."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class HopSettings(BaseModel):
    """Limits, times, and when the circuit breaker opens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default_deadline_seconds: float = Field(30.0, gt=0, le=86_400, description="Deadline of a call that names none.")
    attempt_timeout_seconds: float = Field(
        60.0, gt=0, le=86_400, description="Longest that one call may take, even where the caller would wait longer."
    )
    failure_threshold: int = Field(5, ge=1, description="Consecutive failures that open the circuit breaker.")
    breaker_timeout_seconds: float = Field(60.0, gt=0, description="Longest time that the breaker stays open.")
    failure_rate: float = Field(
        0.5, gt=0, le=1, description="Share of failed calls within the window that opens the circuit breaker."
    )
    slow_call_seconds: float | None = Field(
        None, gt=0, description="A call that takes longer is slow; most calls slow opens the breaker. Unset: none is."
    )
    minimum_calls: int = Field(20, ge=1, description="Fewer calls in the window than this say nothing about rates.")
    window_seconds: float = Field(10.0, gt=0, le=3600, description="How far back the breaker's rates look.")
    max_in_flight: int = Field(1024, ge=8, description="Most calls in flight that the limiter ever allows.")
    max_message_bytes: int = Field(16 * 1024 * 1024, ge=1024, description="Largest gRPC message, in bytes.")
