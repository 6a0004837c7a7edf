"""What a run of the benchmark is told."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PARTS = (
    "gateway", "secured", "embedding", "single", "engines", "cached", "rerank", "cross-encoder", "curve", "peers",
    "memory", "llm",
)  # fmt: skip
DEFAULT_GATEWAY = "http://127.0.0.1:8000"
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

_ROUNDS, _SECONDS = 5, 4.0
_QUICK_ROUNDS, _QUICK_SECONDS = 2, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One run.

    Attributes:
        parts: what to measure, in the order of `PARTS`.
        quick: less of everything, for a look and not for a record.
        rounds: how often each side is measured.
        seconds: how long one round of one side takes requests.
        gateway_url: the mesh under test.
        embedding_target: the embedding worker for gRPC; empty means the one that the gateway names.
        reranking_target: the same for the reranking worker.
        model: the embedding model for the in-process baselines, a hub name or a directory.
        cross_encoder: directory of a cross-encoder; None means the default one, or one made with random weights.
        install_peers: make the peers' environments first.
        peers_dir: where those are; None means ``peers`` in the mesh's home.
        llm_model: directory of the language model that is measured; None means the demo model.
        engine_url: an engine that runs already, up to its ``/v1``; empty starts a vLLM.
        json_path: where the report goes; None means a dated file below ``bench`` in the mesh's home.
    """

    parts: tuple[str, ...] = PARTS
    quick: bool = False
    rounds: int = _ROUNDS
    seconds: float = _SECONDS
    gateway_url: str = DEFAULT_GATEWAY
    embedding_target: str = ""
    reranking_target: str = ""
    model: str = DEFAULT_MODEL
    cross_encoder: Path | None = None
    install_peers: bool = False
    peers_dir: Path | None = None
    llm_model: Path | None = None
    engine_url: str = ""
    json_path: Path | None = None


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Options from a command line; exits with a message where it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the mesh beside what it replaces. The parts gateway, secured, engines, cross-encoder, "
        "memory and llm start all that they need; the others need a running mesh: ./scripts/start_torch_isolation.sh. "
        "Leave the machine alone meanwhile.",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all, or any of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a look in a few minutes; not for figures to keep")
    parser.add_argument("--seconds", type=_positive, help=f"length of one round of one side ({_SECONDS:g})")
    parser.add_argument("--rounds", type=int, help=f"rounds; figures are their medians ({_ROUNDS})")
    parser.add_argument("--gateway", default=DEFAULT_GATEWAY, metavar="URL", help=f"the mesh ({DEFAULT_GATEWAY})")
    parser.add_argument("--embedding-target", default="", metavar="HOST:PORT", help="as the gateway names it")
    parser.add_argument("--reranking-target", default="", metavar="HOST:PORT", help="as the gateway names it")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="embedding model of the in-process baselines")
    parser.add_argument("--cross-encoder", type=Path, metavar="DIR", help="model of the part cross-encoder")
    parser.add_argument("--install-peers", action="store_true", help="make the peers' environments first, from PyPI")
    parser.add_argument("--peers-dir", type=Path, metavar="DIR", help="where those are (var/peers)")
    parser.add_argument("--llm-model", type=Path, metavar="DIR", help="language model (the demo model)")
    parser.add_argument("--engine-url", default="", metavar="URL", help="a running engine in its place, with its /v1")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the report (var/bench/<date>.json)")
    given = parser.parse_args(arguments)
    wanted = set(given.parts or ["all"])
    if strange := wanted - {*PARTS, "all"}:
        parser.error(f"there is no part {', '.join(sorted(strange))}; there are all, {', '.join(PARTS)}")
    rounds = given.rounds if given.rounds is not None else (_QUICK_ROUNDS if given.quick else _ROUNDS)
    if rounds < 1:
        parser.error("--rounds takes a number from 1")
    return Options(
        parts=tuple(part for part in PARTS if part in wanted or "all" in wanted),
        quick=given.quick,
        rounds=rounds,
        seconds=given.seconds or (_QUICK_SECONDS if given.quick else _SECONDS),
        gateway_url=given.gateway.rstrip("/"),
        embedding_target=given.embedding_target,
        reranking_target=given.reranking_target,
        model=given.model,
        cross_encoder=given.cross_encoder,
        install_peers=given.install_peers,
        peers_dir=given.peers_dir,
        llm_model=given.llm_model,
        engine_url=given.engine_url.rstrip("/"),
        json_path=given.json,
    )


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError("takes seconds above 0")
    return value
