"""For tests: stand-ins for the workers, and a gateway that runs. Public: whoever builds on the gateway tests too."""

from gateway.testing.clients import RawRequest, RunningGateway
from gateway.testing.peers import (
    CHAT_MODEL,
    DIMENSIONS,
    EMBEDDING_MODEL,
    RERANKING_MODEL,
    Call,
    FakeChunker,
    FakeEmbedder,
    FakeGpu,
    FakeHop,
    FakePeers,
    FakeReranker,
    FakeWriter,
)

__all__ = [
    "CHAT_MODEL",
    "DIMENSIONS",
    "EMBEDDING_MODEL",
    "RERANKING_MODEL",
    "Call",
    "FakeChunker",
    "FakeEmbedder",
    "FakeGpu",
    "FakeHop",
    "FakePeers",
    "FakeReranker",
    "FakeWriter",
    "RawRequest",
    "RunningGateway",
]
