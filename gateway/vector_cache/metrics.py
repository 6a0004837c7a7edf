"""What the vector cache tells Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

VECTOR_CACHE_INPUTS = Counter(
    "mesh_vector_cache_inputs_total",
    "Inputs of embedding requests: hit (kept), shared (computed for an equal input that was under way), "
    "miss (computed), bypassed (computed because the worker does not say which model serves).",
    ["outcome"],
)
for _outcome in ("hit", "shared", "miss", "bypassed"):
    # From the start: of a cache that never hits, the share of hits is 0 and not unknown.
    VECTOR_CACHE_INPUTS.labels(_outcome)
VECTOR_CACHE_BYTES = Gauge("mesh_vector_cache_bytes", "Memory that kept vectors take; of a Redis, ask the Redis.")
VECTOR_CACHE_ENTRIES = Gauge("mesh_vector_cache_entries", "Vectors kept in memory.")
VECTOR_CACHE_EVICTIONS = Counter("mesh_vector_cache_evictions_total", "Vectors that left memory to make room.")
VECTOR_CACHE_GARBAGE = Counter(
    "mesh_vector_cache_garbage_total", "Values found under a vector's key that are no vector; taken for misses."
)
VECTOR_CACHE_REDIS_ERRORS = Counter(
    "mesh_vector_cache_redis_errors_total",
    "Operations on Redis that failed, by reason, or were left out while a breaker is open (CIRCUIT_OPEN).",
    ["operation", "error"],
)
