"""The wire contract and the clients cover each other."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest
from google.protobuf.descriptor import FileDescriptor

from mesh.clients.base import AsyncClient, SyncClient
from mesh.clients.chunking import AsyncChunkingServiceClient, ChunkingServiceClient
from mesh.clients.embedding import AsyncEmbeddingServiceClient, EmbeddingServiceClient
from mesh.clients.gpu import AsyncGPUServiceClient, GPUServiceClient
from mesh.clients.llm import AsyncLLMServiceClient, LLMServiceClient
from mesh.clients.reranking import AsyncRerankingServiceClient, RerankingServiceClient

PROTOS = ("chunking", "embedding", "gpu", "llm", "reranking")
PAIRS: list[tuple[type[AsyncClient], type[SyncClient]]] = [  # type: ignore[type-arg]  # any client
    (AsyncChunkingServiceClient, ChunkingServiceClient),
    (AsyncEmbeddingServiceClient, EmbeddingServiceClient),
    (AsyncGPUServiceClient, GPUServiceClient),
    (AsyncLLMServiceClient, LLMServiceClient),
    (AsyncRerankingServiceClient, RerankingServiceClient),
]


def descriptor(name: str) -> FileDescriptor:
    """The compiled proto file of a package."""
    module = import_module(f"mesh.pb.{name}.v1.{name}_pb2")
    found: FileDescriptor = module.DESCRIPTOR
    return found


@pytest.mark.parametrize("name", PROTOS)
def test_every_rpc_has_a_client_method_that_calls_it(name: str) -> None:
    """No RPC without a way to call it from Python: the client's source names each stub method."""
    (service,) = descriptor(name).services_by_name.values()
    client = next(each for each, _ in PAIRS if each.service == service.full_name)
    source = inspect.getsource(client)
    assert [rpc.name for rpc in service.methods if f"self._stub.{rpc.name}" not in source] == []


@pytest.mark.parametrize(("async_client", "sync_client"), PAIRS)
def test_both_faces_have_the_same_methods_and_parameters(
    async_client: type[AsyncClient],
    sync_client: type[SyncClient],  # type: ignore[type-arg]  # any client
) -> None:
    """What works on an event loop works blocking, under the same names."""

    def public(cls: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(cls, inspect.isfunction)
        return {name: list(inspect.signature(each).parameters) for name, each in methods if not name.startswith("_")}

    assert public(async_client) == public(sync_client)


@pytest.mark.parametrize(("async_client", "sync_client"), PAIRS)
def test_only_rpcs_that_exist_are_called_idempotent(
    async_client: type[AsyncClient],
    sync_client: type[SyncClient],  # type: ignore[type-arg]  # any client
) -> None:
    """A misspelt method would silently get no retry, and a generation must never get one."""
    package = async_client.service.split(".")[0]
    (service,) = descriptor(package).services_by_name.values()
    streaming = {rpc.name for rpc in service.methods if rpc.client_streaming or rpc.server_streaming}
    assert set(async_client.idempotent_methods) <= {rpc.name for rpc in service.methods} - streaming


@pytest.mark.parametrize("name", PROTOS)
def test_no_proto_imports_another_of_ours(name: str) -> None:
    """Each service can be taken alone."""
    assert [each.name for each in descriptor(name).dependencies if "google" not in each.name] == []
