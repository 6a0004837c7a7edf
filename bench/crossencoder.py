"""A cross-encoder through the mesh's reranking worker over CrossEncoder.predict with the same model and pairs.

The worker is the benchmark's own, so that the row is there whatever the mesh serves. Where no cross-encoder is on this
machine, one is made: the embedding model with a head of random weights. It ranks by nothing, and takes exactly the time
that a trained one of its architecture takes.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bench.aside import Aside
from bench.gateway import gateway_program
from bench.inprocess import InProcessCrossEncoder
from bench.load import connected
from bench.measure import Tell
from bench.options import Options
from bench.processes import running
from bench.report import Row
from bench.rerank import CONCURRENCY, DOCUMENTS_PER_REQUEST, compare, over_grpc, over_http
from bench.texts import random_rankings
from bench.workers import reranking_worker
from inference import hub
from inference.models import DEFAULT_CROSS_ENCODER, PINNED_REVISIONS
from ops.local.layout import Layout

_REQUESTS = 32
_SEED = 20


async def measure(options: Options, layout: Layout, embedding_model: Path, *, tell: Tell) -> list[Row]:
    """The rows of the cross-encoder.

    Raises:
        DidNotStart: the worker or the gateway did not start.
        BaselineFailed: sentence-transformers cannot use the model.
        RequestFailed: a request failed.
        MeshError: a gRPC call failed.
    """
    from mesh.clients import AsyncRerankingServiceClient

    rankings = random_rankings(_REQUESTS, DOCUMENTS_PER_REQUEST)
    async with AsyncExitStack() as stack:
        path, remark = await stack.enter_async_context(_model(options, embedding_model))
        tell(f"cross-encoder: {remark}, in a worker and a gateway of its own")
        worker = await stack.enter_async_context(reranking_worker(layout, {"MODEL": str(path)}))
        gateway = await stack.enter_async_context(running(gateway_program(layout.python("gateway"), worker.target)))
        client = await stack.enter_async_context(AsyncRerankingServiceClient(worker.target))
        lanes = await stack.enter_async_context(connected(gateway.url, CONCURRENCY))
        baseline = await stack.enter_async_context(InProcessCrossEncoder(path))
        engine = (await client.info()).models[0].engine
        ways = {
            f"HTTP, {remark}, {engine}": over_http(lanes, gateway.url, rankings),
            f"gRPC, {remark}, {engine}": over_grpc(client, rankings),
        }
        return await compare(
            "cross-encoder", ways, baseline, rankings, against="predict in process", options=options, tell=tell
        )


@asynccontextmanager
async def _model(options: Options, embedding_model: Path) -> AsyncIterator[tuple[Path, str]]:
    """The directory of a cross-encoder, and what to call it."""
    if options.cross_encoder is not None:
        yield options.cross_encoder, options.cross_encoder.name
        return
    cached = hub.cached_snapshot(DEFAULT_CROSS_ENCODER, PINNED_REVISIONS[DEFAULT_CROSS_ENCODER])
    if cached is not None:
        yield cached, DEFAULT_CROSS_ENCODER.rpartition("/")[2]
        return
    with tempfile.TemporaryDirectory(prefix="cross-encoder-") as directory:
        async with Aside("the maker of a cross-encoder", _Maker) as maker:
            await maker.ask("make", str(embedding_model), directory)
        yield Path(directory), "untrained head"


class _Maker:
    """Makes a cross-encoder of an encoder, in a process of its own: torch does not belong into the load generator's."""

    def make(self, encoder: str, directory: str) -> None:
        import torch  # type: ignore[import-not-found, unused-ignore]
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()  # that the head is new is known here
        logging.disable_progress_bar()
        torch.manual_seed(_SEED)
        model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1)
        # Scores as far apart as a trained model's: the usual weights of a new head make them all alike.
        torch.nn.init.normal_(model.classifier.weight, std=0.3)
        model.save_pretrained(directory)
        AutoTokenizer.from_pretrained(encoder).save_pretrained(directory)
