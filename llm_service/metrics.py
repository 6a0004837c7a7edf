"""What the LLM worker counts, beside what every worker counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from mesh.telemetry import LATENCY_BUCKETS

RUNNING = Gauge("mesh_llm_requests_running", "Requests that the engine is writing for.")
WAITING = Gauge("mesh_llm_requests_waiting", "Requests that wait for the engine.")
TOKENS = Counter("mesh_llm_tokens_total", "Tokens, as the engine counted them.", ["kind"])
FIRST_PIECE = Histogram(
    "mesh_llm_first_token_seconds", "Time from a request's arrival to its first piece.", buckets=LATENCY_BUCKETS
)
ENGINE_RESTARTS = Counter("mesh_llm_engine_restarts_total", "Times that the engine was started again.")
