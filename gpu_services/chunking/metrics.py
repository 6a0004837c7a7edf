"""What the line of documents tells Prometheus. Each is read when it is scraped."""

from __future__ import annotations

from typing import Any

from prometheus_client import Gauge

from gpu_services.chunking.queueing import Places, Queue

_RUNNING = Gauge("mesh_chunking_documents_running", "Documents that a child process works on.")
_RUNNING_LIMIT = Gauge("mesh_chunking_documents_running_limit", "Documents that may be worked on at once.")
_WAITING = Gauge("mesh_chunking_documents_waiting", "Documents that are being uploaded or wait for a child process.")
_WAITING_LIMIT = Gauge("mesh_chunking_documents_waiting_limit", "Documents that may wait; over it they are refused.")


def publish(queue: Queue[Any], places: Places) -> None:
    """Tell of this queue from now on."""
    _RUNNING.set_function(lambda: queue.running)
    _WAITING.set_function(lambda: queue.waiting)
    _RUNNING_LIMIT.set(places.at_once)
    _WAITING_LIMIT.set(places.queued)
