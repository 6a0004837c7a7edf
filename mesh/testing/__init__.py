"""Fakes that behave like the real thing, public because users of the clients need them in their tests too."""

from mesh.testing.clock import FakeClock
from mesh.testing.embedding import ScriptedEmbedding
from mesh.testing.server import RunningWorker, serve, serve_in_thread, until_serving

__all__ = ["FakeClock", "RunningWorker", "ScriptedEmbedding", "serve", "serve_in_thread", "until_serving"]
