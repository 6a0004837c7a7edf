"""Text Embeddings Inference's clients, and Jina's documented shape, against a running gateway."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from huggingface_hub import InferenceClient

from gateway.settings import GatewaySettings
from gateway.testing import RERANKING_MODEL, FakePeers, RunningGateway


@pytest.fixture
def gateway() -> Iterator[RunningGateway]:
    """A gateway on a socket, over stand-ins."""
    with RunningGateway(GatewaySettings(), FakePeers()) as running:
        yield running


def test_hugging_faces_inference_client_embeds(gateway: RunningGateway) -> None:
    """The client for TEI gets its array from our /embed."""
    client = InferenceClient(model=f"{gateway.url}/embed")
    vectors = client.feature_extraction("four", normalize=True, truncate=True)
    assert vectors.tolist() == [[4.0, 4.125, 4.25, 4.375]]


def test_teis_documented_rerank(gateway: RunningGateway) -> None:
    """The request of TEI's README, word for word."""
    body = {
        "query": "What is Deep Learning?",
        "texts": ["Deep Learning is not...", "Deep learning is..."],
        "raw_scores": False,
    }
    answer = httpx.post(f"{gateway.url}/rerank", json=body)
    assert [sorted(item) for item in answer.json()] == [["index", "score"], ["index", "score"]]
    assert answer.json()[0]["score"] >= answer.json()[1]["score"]
    assert answer.headers["x-compute-tokens"]


def test_jinas_documented_rerank(gateway: RunningGateway) -> None:
    """The request of Jina's documentation, and all that its answer promises."""
    documents = ["Organic skincare for sensitive skin with aloe vera", "New makeup trends focus on bold colors"]
    body = {
        "model": "maxsim",
        "query": "Organic skincare products for sensitive skin",
        "top_n": 1,
        "documents": documents,
        "return_documents": True,
    }
    answer = httpx.post(f"{gateway.url}/v1/rerank", json=body, headers={"authorization": "Bearer none"}).json()
    assert answer["model"] == RERANKING_MODEL
    assert set(answer["usage"]) == {"total_tokens", "prompt_tokens"}
    [result] = answer["results"]
    assert (result["index"], result["document"]["text"]) == (0, documents[0])
    assert 0 < result["relevance_score"] <= 1


def test_an_upload_over_a_real_socket(gateway: RunningGateway) -> None:
    """Eight megabytes go through in pieces, and a client that hangs up in the middle does no harm."""
    content = (b"x" * 99_999 + b"\n") * 80
    answer = httpx.post(
        f"{gateway.url}/v1/chunk",
        data={"max_tokens": "64"},
        files={"file": ("big.txt", content, "text/plain")},
        headers={"accept": "application/x-ndjson"},
        timeout=60,
    )
    assert answer.text.splitlines()[-1].startswith('{"document"')
    assert sum(gateway.peers.chunker.received) == len(content)

    def hang_up() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nabc'
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        httpx.post(
            f"{gateway.url}/v1/chunk",
            content=hang_up(),
            headers={"content-type": "multipart/form-data; boundary=x"},
        )
    assert httpx.get(f"{gateway.url}/health/ready").json() == {"status": "ready"}
