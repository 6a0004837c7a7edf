"""What keys tell Prometheus. No series for a key or a tenant: those stand in the log, which has room for them."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

KEYS_REFUSED = Counter(
    "mesh_keys_refused_total",
    "Requests refused for their key or its limits, by reason: missing_api_key, invalid_api_key, role, foreign_origin, "
    "requests, tokens, concurrency, size.",
    ["reason"],
)
KEYS_USABLE = Gauge("mesh_keys_usable", "Keys that were usable when the file was read last.")
KEYS_FILE_READABLE = Gauge("mesh_keys_file_readable", "0 while the file of keys cannot be read again.")
