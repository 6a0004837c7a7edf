"""How any worker starts, reports its health, translates its errors, drains and ends."""

from mesh.serving.calls import call_context, deadline_of
from mesh.serving.capability import Capability
from mesh.serving.worker import Worker, run
from mesh.settings import WorkerSettings

__all__ = ["Capability", "Worker", "WorkerSettings", "call_context", "deadline_of", "run"]
