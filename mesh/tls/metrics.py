"""Time series about certificates."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

CERTIFICATE_NOT_AFTER = Gauge(
    "mesh_tls_certificate_not_after_timestamp_seconds",
    "When this process's certificate, or the last of its authorities, expires, in seconds since 1970.",
    ["file"],
)
FILES_REFUSED = Gauge(
    "mesh_tls_files_refused", "1 while the certificate files cannot be used, and the ones before them still are."
)
RELOADS = Counter("mesh_tls_reloads_total", "Times that certificate files changed, by what came of it.", ["outcome"])
ENDPOINT_PROBLEMS = Counter(
    "mesh_tls_endpoint_problems_total",
    "Looks at an endpoint that cannot be reached which found its certificates at fault.",
    ["hop", "problem"],
)
