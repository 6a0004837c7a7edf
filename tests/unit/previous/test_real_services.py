"""Models of before, held against the workers' own scoring where no hub is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inference import package
from inference.rerankers import Method
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest
from previous.services.embedding import EmbeddingService
from previous.services.reranking import RerankingService
from reranking_service.scoring import RerankingRequest
from reranking_service.settings import RerankingSettings
from reranking_service.worker import load_reranker

pytest.importorskip("sentence_transformers", reason="needs the workers' environment")
pytestmark = [
    pytest.mark.workers_env,
    pytest.mark.skipif(package.model_directory() is None, reason="the package with the default model is not installed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

QUERY = "How do I reset a forgotten password?"
DOCUMENTS = [
    "Bread is baked in an oven at two hundred degrees.",
    "To choose a new password, follow the link on the sign-in page; it is valid for one hour.",
    "password",
    "The parties agree that any dispute shall be settled by arbitration. " * 60,
]


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default encoder with a head of random weights."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path, encoder = tmp_path_factory.mktemp("cross-encoder"), str(package.model_directory())
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1)
    torch.nn.init.normal_(model.classifier.weight, std=0.3)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(path)
    return path


async def test_a_cross_encoder_scores_as_in_the_worker(cross_encoder: Path, tmp_path: Path) -> None:
    """The same scores in [0, 1] for every document, one that is too long among them."""
    settings = RerankingSettings.load({}, model=str(cross_encoder), models_dir=tmp_path, engine="torch", threads=1)
    reranker = load_reranker(settings)
    reranker.start()
    try:
        request = RerankingRequest(query=QUERY, documents=DOCUMENTS)
        served = await reranker.rerank(request, deadline=Deadline.after(120))
    finally:
        await reranker.stop()
    service = RerankingService(str(cross_encoder), device="cpu")
    assert service.method is Method.CROSS_ENCODER
    assert np.allclose(service.rerank(QUERY, DOCUMENTS), served.scores, atol=1e-3)


def test_nothing_in_is_nothing_out() -> None:
    """An empty list costs no inference and is no error; a query of nothing is refused, as by the worker."""
    assert EmbeddingService(device="cpu").generate_embeddings([]).shape == (0, 384)
    reranker = RerankingService(method=Method.LATE_INTERACTION, device="cpu")
    assert reranker.rerank(QUERY, []) == []
    with pytest.raises(InvalidRequest, match="Ask in words"):
        reranker.rerank("  ", DOCUMENTS)
    assert reranker.rerank(QUERY, ["\u200b"]) == [0.0]
