"""Several language models over the real wire: hops by name from the settings, each to a worker of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest

from gateway.app import create_app
from gateway.settings import GatewaySettings
from mesh.pb.llm.v1 import llm_pb2 as pb
from mesh.pb.llm.v1.llm_pb2_grpc import LlmServiceServicer, add_LlmServiceServicer_to_server
from mesh.serving import Capability
from mesh.serving.calls import ServicerContext
from mesh.testing import serve


async def _ready() -> None:
    """Nothing to load."""


class NamedWriter(LlmServiceServicer):
    """Answers every chat with its model's name."""

    def __init__(self, model: str) -> None:
        self.model = model

    async def Chat(self, request: pb.ChatRequest, context: ServicerContext) -> AsyncIterator[pb.ChatResponse]:
        """One word."""
        yield pb.ChatResponse(start=pb.AnswerStart(model=self.model))
        yield pb.ChatResponse(delta=pb.AnswerDelta(text=self.model))
        yield pb.ChatResponse(
            finish=pb.AnswerFinish(choices=[pb.ChoiceFinish(reason=pb.FINISH_REASON_STOP)], usage=pb.Usage())
        )

    async def Info(self, request: pb.InfoRequest, context: ServicerContext) -> pb.InfoResponse:
        """One model."""
        return pb.InfoResponse(models=[pb.Model(name=self.model)])

    def capability(self) -> Capability:
        """As a worker's capability that is ready at once."""
        return Capability(
            service="llm.v1.LlmService",
            register=lambda server: add_LlmServiceServicer_to_server(self, server),
            start=_ready,
        )


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A gateway with a worker for everybody, one for ``small``, and for ``large`` one that is down."""
    async with AsyncExitStack() as stack:
        everybody = await stack.enter_async_context(serve([NamedWriter("org/demo").capability()]))
        small = await stack.enter_async_context(serve([NamedWriter("org/small-1b").capability()]))
        models = {"small": {"url": small.target}, "large": {"url": "127.0.0.1:1"}}
        nowhere = {"url": "127.0.0.1:1"}
        services = {
            "llm": {"url": everybody.target, "models": models},
            **dict.fromkeys(("embedding", "gpu", "reranking"), nowhere),
        }
        app = create_app(GatewaySettings.model_validate({"services": services}))
        await stack.enter_async_context(app.router.lifespan_context(app))
        yield await stack.enter_async_context(
            httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway")
        )


async def test_names_reach_their_workers_and_one_that_is_down_hides_nobody(client: httpx.AsyncClient) -> None:
    """In both dialects; the name of the one that is down is unavailable, and a name that it may serve is too."""
    messages = [{"role": "user", "content": "Hi"}]
    said = {}
    for name in ("", "org/demo", "small", "org/small-1b", "large", "medium"):
        for path in ("/v1/chat/completions", "/v1/messages"):
            answer = await client.post(path, json={"model": name, "max_tokens": 8, "messages": messages})
            said[name, path] = (answer.status_code, answer.json().get("model"))
    wanted = {"": "org/demo", "org/demo": "org/demo", "small": "org/small-1b", "org/small-1b": "org/small-1b"}
    assert said == {key: (200, wanted[key[0]]) if key[0] in wanted else (503, None) for key in said}
    listed = [card["id"] for card in (await client.get("/v1/models")).json()["data"]]
    assert listed == ["org/demo", "org/small-1b", "small"]
