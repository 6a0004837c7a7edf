"""The embedding service behind a real gRPC server, seen by its clients. The engine is a fake, all else is real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc.aio
import numpy as np
import pytest

from embedding_service.embedder import Embedder
from embedding_service.servicer import SERVICE, EmbeddingServicer
from inference.life import ModelLife
from inference.runner import RunnerLimits
from inference.testing import GatedEngine, fake_loaded_model
from inference.tokenizing import TextTokenizer, Tokenized
from inference.tokenizing import Truncation as Cut
from mesh.clients.embedding import (
    AsyncEmbeddingServiceClient,
    EmbeddingProfile,
    EmbedInputs,
    EmbedOptions,
    InputType,
    TokenInputs,
    Truncation,
)
from mesh.deadline import Deadline
from mesh.errors import (
    InvalidRequest,
    MeshError,
    ModelUnusable,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    Unavailable,
    WrongState,
)
from mesh.pb.embedding.v1 import embedding_pb2 as pb
from mesh.pb.embedding.v1 import embedding_pb2_grpc
from mesh.serving import Capability
from mesh.testing import serve

LIMITS = RunnerLimits(items_per_request=50, tokens_per_request=400, queued_tokens=1000, batch_tokens=32)


def capability(life: ModelLife[Embedder]) -> Capability:
    """As the worker's own."""
    servicer = EmbeddingServicer(life, max_request_bytes=1024, max_stream_requests=2)
    return Capability(service=SERVICE, register=servicer.register, start=life.start, stop=life.stop)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncEmbeddingServiceClient]:
    """A client of a worker that serves."""
    life = ModelLife(lambda: Embedder(fake_loaded_model(tmp_path), LIMITS), capability="embedding")
    async with serve([capability(life)]) as running, AsyncEmbeddingServiceClient(running.target) as connected:
        await _until_answered(connected)
        yield connected


async def _until_answered(client: AsyncEmbeddingServiceClient) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await client.info(deadline=Deadline.after(1.0))
                return
            except Unavailable:
                await asyncio.sleep(0.01)


async def test_vectors_usage_and_cuts(client: AsyncEmbeddingServiceClient) -> None:
    """Vectors arrive as float32 rows, with what they cost and which inputs were cut."""
    found = await client.embed(["cat", "a " * 30, "cat"])
    vectors = found.array()
    assert (vectors.shape, vectors.dtype) == ((3, 8), np.dtype("<f4"))
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert (found.model, found.usage.tokens, found.usage.characters) == ("owner/fake", 3 + 16 + 3, 66)
    assert found.truncated_inputs == (1,)
    assert found.timings.total_us >= found.timings.inference_us > 0
    assert (await client.generate_embeddings(["cat"])).shape == (1, 8)


async def test_token_inputs(client: AsyncEmbeddingServiceClient) -> None:
    """Ids of the model's own vocabulary need no tokenizer."""
    assert (await client.embed(TokenInputs([[4, 5], [6]]))).usage.tokens == 7


async def test_a_stream_answers_in_order(client: AsyncEmbeddingServiceClient) -> None:
    """Requests of one stream are computed side by side and answered one after the other."""
    batches = [["cat"] * size for size in (1, 20, 2, 7, 1)]

    async def send() -> AsyncIterator[EmbedInputs]:
        for batch in batches:
            yield batch

    answered = [found.rows async for found in client.embed_stream(send())]
    assert answered == [1, 20, 2, 7, 1]


async def test_a_stream_ends_with_its_first_error(client: AsyncEmbeddingServiceClient) -> None:
    """What came before the faulty request arrives; the error keeps its name."""

    async def send() -> AsyncIterator[EmbedInputs]:
        yield ["cat"]
        yield ["cat", ""]
        yield ["dog"]

    rows: list[int] = []
    with pytest.raises(InvalidRequest) as refused:
        async for found in client.embed_stream(send()):
            rows.append(found.rows)
    assert rows == [1]
    assert refused.value.param == "input[1]"


@pytest.mark.parametrize(
    ("inputs", "options", "error"),
    [
        ([], EmbedOptions(), InvalidRequest),
        (["cat", ""], EmbedOptions(), InvalidRequest),
        (["a " * 30], EmbedOptions(truncation=Truncation.REFUSE), InvalidRequest),
        (["cat"], EmbedOptions(model="other"), NotFound),
        (["cat"], EmbedOptions(dimensions=3), WrongState),
        (["cat"] * 51, EmbedOptions(), PayloadTooLarge),
        (TokenInputs([[10_000]]), EmbedOptions(), InvalidRequest),
    ],
)
async def test_errors_keep_their_class(
    client: AsyncEmbeddingServiceClient, inputs: EmbedInputs, options: EmbedOptions, error: type[MeshError]
) -> None:
    """Bad input is the caller's error on this side too, and the worker goes on."""
    with pytest.raises(error) as refused:
        await client.embed(inputs, options)
    assert type(refused.value) is error
    assert (await client.embed(["cat"])).rows == 1


async def test_millions_of_tiny_texts_are_refused_unread(client: AsyncEmbeddingServiceClient) -> None:
    """Parsing them would keep health waiting; the refusal is the one that a few too many get."""
    with pytest.raises(PayloadTooLarge) as refused:
        await client.embed(["a"] * 200_000)
    assert refused.value.reason == "TOO_MANY_INPUTS"
    assert "100000" in refused.value.message


async def test_info(client: AsyncEmbeddingServiceClient) -> None:
    """Info says what is served, by which engine, how faithful, and within which limits."""
    info = await client.info()
    (model,) = info.models
    assert (model.name, model.aliases, model.dimensions, model.max_input_tokens) == ("owner/fake", ("fake",), 8, 16)
    assert (model.engine, model.precision, model.device, model.pooling) == ("fake", "float32", "cpu", "mean")
    assert model.fidelity_min_cosine == 1.0
    assert model.profile == EmbeddingProfile(source="model")
    assert (info.limits.max_inputs_per_request, info.limits.max_request_bytes) == (50, 1024)


async def test_input_types_and_prompts(tmp_path: Path) -> None:
    """Info tells the prompts, a request chooses among them, and an unknown one is refused with those that are there."""
    prompts = {"prompts": {"query": "the ", "clustering": "a ", "s2p": "b "}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts), encoding="utf-8")
    life = ModelLife(lambda: Embedder(fake_loaded_model(tmp_path), LIMITS), capability="embedding")
    async with serve([capability(life)]) as running, AsyncEmbeddingServiceClient(running.target) as client:
        await _until_answered(client)
        (model,) = (await client.info()).models
        assert model.profile.prompts == prompts["prompts"]
        for options, text in (
            (EmbedOptions(input_type=InputType.QUERY), "the cat"),
            (EmbedOptions(input_type=InputType.DOCUMENT), "cat"),
            (EmbedOptions(input_type=InputType.CLUSTERING), "a cat"),
            (EmbedOptions(prompt_name="s2p"), "b cat"),
        ):
            prompted = (await client.embed(["cat"], options)).array()
            np.testing.assert_array_equal(prompted, await client.generate_embeddings([text]))
        with pytest.raises(InvalidRequest, match="query, clustering, s2p") as refused:
            await client.embed(["cat"], EmbedOptions(prompt_name="poem"))
        assert refused.value.param == "input_type"


async def test_an_unusable_model_says_why() -> None:
    """A refused model leaves the capability NOT_SERVING, and the hop's probe knows the reason."""

    def load() -> Embedder:
        raise ModelUnusable("The weights were cut short. Fetch the model again.", reason="MODEL_TRUNCATED")

    life = ModelLife(load, capability="embedding")
    async with serve([capability(life)]) as running, AsyncEmbeddingServiceClient(running.target) as client:
        client.start()
        async with asyncio.timeout(10):
            while (endpoint := client.hop.status().endpoints[0]).reason_code != "MODEL_TRUNCATED":
                await asyncio.sleep(0.01)
        assert endpoint.health == "NOT_SERVING"
        assert "Fetch the model again" in endpoint.reason
        with pytest.raises(Unavailable):
            await client.embed(["cat"], deadline=Deadline.after(1.0))


class CountingTokenizer:
    """A tokenizer that counts the texts it was given."""

    def __init__(self, inner: TextTokenizer) -> None:
        self._inner = inner
        self.max_tokens = inner.max_tokens
        self.texts = 0

    def singles(self, texts: Sequence[str], truncation: Cut, *, prompt: str) -> Tokenized:
        """See TextTokenizer."""
        self.texts += len(texts)
        return self._inner.singles(texts, truncation, prompt=prompt)


async def test_what_a_full_queue_refuses_is_not_tokenized(tmp_path: Path) -> None:
    """A refusal costs no work, tells when to come back, and leaves health and admitted calls alone."""
    loaded, engine = GatedEngine.loaded(tmp_path)
    tokenizer = CountingTokenizer(loaded.tokenizer)
    loaded = replace(loaded, tokenizer=cast("TextTokenizer", tokenizer))
    limits = RunnerLimits(items_per_request=50, tokens_per_request=400, queued_tokens=30, batch_tokens=3)
    life = ModelLife(lambda: Embedder(loaded, limits), capability="embedding")
    async with serve([capability(life)]) as running, AsyncEmbeddingServiceClient(running.target) as client:
        await _until_answered(client)
        engine.gate.clear()
        admitted = [asyncio.create_task(client.embed(["cat"] * count)) for count in (1, 9)]
        async with asyncio.timeout(5):
            while life.served.runner.queued_tokens < 27:
                await asyncio.sleep(0.005)
        before = tokenizer.texts
        refusals = await asyncio.gather(*(client.embed(["dog"] * 32) for _ in range(20)), return_exceptions=True)
        assert tokenizer.texts == before
        for refused in refusals:
            assert isinstance(refused, Overloaded)
            assert refused.retry_after is not None
        engine.gate.set()
        assert [found.rows for found in await asyncio.gather(*admitted)] == [1, 9]


async def test_the_event_loop_stays_free_while_a_large_readable_answer_is_built(tmp_path: Path) -> None:
    """Readable vectors by the thousand are right, and are not put together where health is answered."""
    limits = replace(LIMITS, items_per_request=20_000, tokens_per_request=10**6, queued_tokens=10**6)
    limits = replace(limits, batch_tokens=10**6)
    life = ModelLife(lambda: Embedder(fake_loaded_model(tmp_path), limits), capability="embedding")
    async with serve([capability(life)]) as running, AsyncEmbeddingServiceClient(running.target) as client:
        await _until_answered(client)
        async with grpc.aio.insecure_channel(running.target) as channel:
            stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
            request = pb.EmbedRequest(texts=["cat", "dog"] * 5_000, format=pb.VECTOR_FORMAT_FLOATS)
            reply = await stub.Embed(request, timeout=20)
    assert len(reply.readable_vectors) == 10_000
    assert list(reply.readable_vectors[0].values) == list(reply.readable_vectors[2].values)
    assert list(reply.readable_vectors[0].values) != list(reply.readable_vectors[1].values)


async def test_answers_and_info_tell_the_same_model(client: AsyncEmbeddingServiceClient) -> None:
    """Whoever keeps vectors can tell whether the model is still the one that computed them, and what each text cost."""
    found = await client.embed(["cat", "a " * 30])
    (model,) = (await client.info()).models
    assert found.fingerprint
    assert found.fingerprint == model.fingerprint
    assert found.input_tokens == (3, 16)
