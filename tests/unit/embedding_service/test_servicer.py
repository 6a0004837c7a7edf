"""What the servicer does before anything is translated."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from embedding_service import servicer
from embedding_service.embedder import Embedder
from embedding_service.servicer import EmbeddingServicer
from inference.life import ModelLife
from inference.runner import RunnerLimits
from inference.testing import fake_loaded_model
from mesh.context import CallContext
from mesh.deadline import Deadline
from mesh.errors import PayloadTooLarge
from mesh.pb.embedding.v1 import embedding_pb2 as pb

LIMITS = RunnerLimits(items_per_request=50, tokens_per_request=400, queued_tokens=1000, batch_tokens=32)


@pytest.mark.parametrize(
    "request_",
    [
        pb.EmbedRequest(texts=["a"] * 51),
        pb.EmbedRequest(token_inputs=[pb.TokenIds(ids=[4])] * 51),
        pb.EmbedRequest(texts=["a"] * 26, token_inputs=[pb.TokenIds(ids=[4])] * 25),
    ],
)
async def test_too_many_inputs_are_refused_before_they_are_copied(
    request_: pb.EmbedRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message holds millions of tiny inputs, and copying them would keep health waiting."""

    def translate(_: object) -> NoReturn:
        raise AssertionError("was translated")

    monkeypatch.setattr(servicer, "_from_wire", translate)
    life = ModelLife(lambda: Embedder(fake_loaded_model(tmp_path), LIMITS), capability="embedding")
    await life.start()
    tested = EmbeddingServicer(life, max_request_bytes=1024, max_stream_requests=2)
    with pytest.raises(PayloadTooLarge) as refused:
        await tested._answer(request_, Deadline.after(10), CallContext.from_metadata(()))
    assert refused.value.reason == "TOO_MANY_INPUTS"
    await life.stop()
