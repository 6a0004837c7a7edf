"""What is kept of refusals for people who look."""

from __future__ import annotations

from fastapi import FastAPI

from gateway.app import create_app
from gateway.door import Door
from gateway.lifecycle import Lifecycle
from gateway.refusals import MOST_KINDS, SLICE_SECONDS, SLICES, RecentRefusals
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers
from mesh.errors import CircuitOpen
from mesh.testing import FakeClock
from tests.unit.gateway.conftest import connected


def test_kinds_are_counted_by_slices_of_time_most_refused_first() -> None:
    """Each kind has its sum and where in the last five minutes it happened, the latest slice last."""
    clock = FakeClock()
    refusals = RecentRefusals(clock)
    refusals.note("/embed", 503, "unavailable", "embedding")
    clock.advance(SLICE_SECONDS)
    for _ in range(2):
        refusals.note("/v1/rerank", 429, "hop_limit", "reranking")
    document = refusals.document()
    assert [(each["hop"], each["reason"], each["count"]) for each in document["kinds"]] == [
        ("reranking", "hop_limit", 2),
        ("embedding", "unavailable", 1),
    ]
    assert [each["slices"][-2:] for each in document["kinds"]] == [[0, 2], [1, 0]]
    assert len(document["kinds"][0]["slices"]) * SLICE_SECONDS == document["seconds"]


def test_what_is_older_is_forgotten() -> None:
    """Five minutes later nothing is left, also where nothing was refused since."""
    clock = FakeClock()
    refusals = RecentRefusals(clock)
    refusals.note("/embed", 503, "unavailable", "embedding")
    clock.advance(SLICE_SECONDS * (SLICES - 1))
    assert refusals.document()["kinds"][0]["slices"][0] == 1
    clock.advance(SLICE_SECONDS)
    assert refusals.document()["kinds"] == []


def test_the_number_of_kinds_is_bounded() -> None:
    """Whatever reasons a worker makes up, they take no more memory than this, and none goes uncounted."""
    refusals = RecentRefusals(FakeClock())
    for number in range(MOST_KINDS * 3):
        refusals.note("/embed", 500, f"made_up_{number}", "embedding")
    kinds = refusals.document()["kinds"]
    assert len(kinds) == MOST_KINDS + 1
    assert (kinds[0]["reason"], kinds[0]["count"]) == ("other_reasons", MOST_KINDS * 2)


def test_a_client_that_left_was_not_refused() -> None:
    """Before its answer began (499) or in the middle of it, that is the client's own doing."""
    refusals = RecentRefusals(FakeClock())
    refusals.note("/embed", 499, "cancelled", "")
    refusals.note("/status/stream", 200, "cancelled", "")
    assert refusals.document()["kinds"] == []


async def test_what_the_gateway_answers_with_a_failure_is_counted_with_the_hop(settings: GatewaySettings) -> None:
    """By the layers or by the door, with the hop whose failure it is; a success is not."""
    lifecycle, peers = Lifecycle(), FakePeers()
    door = Door.of(settings, lifecycle)
    app: FastAPI = create_app(settings, peers=peers.as_peers(), lifecycle=lifecycle, door=door)
    async with connected(app) as client:
        peers.embedder.error = CircuitOpen("Open.", hop="embedding", retry_after=1.0)
        assert (await client.post("/v1/embeddings", json={"input": "x"})).status_code == 503
        assert (await client.get("/nothing")).status_code == 404
        assert (await client.post("/v1/rerank", json={"query": "a", "documents": ["a"]})).is_success
    peers.embedder.hop.refusal = CircuitOpen("Open.", hop="embedding", retry_after=1.0)
    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": [(b"content-length", b"2")]}
    assert door.turn_away(scope)
    kinds = {(each["hop"], each["reason"], each["route"]): each["count"] for each in _kinds(door)}
    assert kinds == {("embedding", "circuit_open", "/v1/embeddings"): 2, ("", "route_not_found", "unmatched"): 1}


def _kinds(door: Door) -> list[dict[str, object]]:
    kinds: list[dict[str, object]] = door.journal.recent.document()["kinds"]
    return kinds
