"""What the mesh leaves of a GPU's speed: texts through a worker's gRPC over the model's own batches."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from bench.load import closed_loop
from bench.texts import Length, random_texts
from bench.ways import in_requests, over_grpc
from bench.workers import embedding_worker
from inference.card import ModelCard, ModelKind
from inference.tokenizing import TextTokenizer, Truncation
from mesh.clients import AsyncEmbeddingServiceClient
from ops.local.layout import Layout
from tests.chaos.bars import Bars, Measured
from tests.gpu.raw import RawModel
from tests.gpu.utilization import watched

pytestmark = [
    pytest.mark.workers_env,
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

TEXTS_PER_REQUEST = 256
CONCURRENCY = 16
ROUNDS = 3
SECONDS = 4.0


@pytest.mark.parametrize("length", [Length.SHORT, Length.LONG])
@pytest.mark.parametrize("model", ["default_model", "large_model"])
async def test_the_worker_keeps_the_models_own_speed(  # noqa: PLR0917 - fixtures
    model: str, length: Length, request: pytest.FixtureRequest, layout: Layout, device: str, measured: Measured
) -> None:
    """Tokenizing, queueing, batching and the hop together cost at most a twentieth of what the device can do."""
    import torch

    path: Path = request.getfixturevalue(model)
    texts = random_texts(16 * TEXTS_PER_REQUEST, length)
    card = ModelCard.read(path, name=path.name, kind=ModelKind.EMBEDDING)
    tokenizer = TextTokenizer.load(path, name=path.name, max_tokens=card.max_input_tokens)
    inputs = list(tokenizer.singles(texts, Truncation.END).inputs)
    uuid = str(torch.cuda.get_device_properties(0).uuid)
    bars = Bars(f"{model.replace('_', ' ')}, {length.name.lower()} texts", measured)
    async with (
        embedding_worker(layout, {"MODEL": str(path), "DEVICE": device, "MIN_COSINE": "0.99"}) as worker,
        AsyncEmbeddingServiceClient(worker.target) as client,
    ):
        served = (await client.info()).models[0]
        way = over_grpc(client, in_requests(texts, TEXTS_PER_REQUEST))
        await closed_loop(way.send, concurrency=CONCURRENCY, seconds=1.0)
        raw = RawModel.load(path, precision=served.precision, device=device)
        alone, through, busy = [], [], []
        for _ in range(ROUNDS):
            alone.append(raw.texts_per_second(inputs, seconds=SECONDS / 4))
            with watched(uuid) as utilization:
                through.append((await closed_loop(way.send, concurrency=CONCURRENCY, seconds=SECONDS)).rate)
            busy.append(utilization.mean)
    bars.tell(f"the model alone, {served.precision}", statistics.median(alone), "texts/s")
    bars.tell(f"through {served.engine}", statistics.median(through), "texts/s")
    bars.tell("utilization through the worker, by NVML", statistics.median(busy), "%")
    ratio = statistics.median(mesh / model for mesh, model in zip(through, alone, strict=True))
    bars.at_least("the worker over the model alone", ratio, "", promise=0.95)
    bars.hold()
