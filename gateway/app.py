"""The composition root: settings in, one ASGI application out. Nothing else in the gateway builds anything."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI

from gateway.admission import Admission
from gateway.api import Api, Exact, PlainRoute
from gateway.attention import Attention
from gateway.catalogue import Catalogue
from gateway.door import Door
from gateway.hosts import HostCheck, allowed_hosts
from gateway.keys.building import Keys, guarding, rationing, with_keys
from gateway.lifecycle import Lifecycle
from gateway.middleware import Account, BodyCap, BodyLimits, Framing, folded
from gateway.peers import Peers
from gateway.ranking import Ranker
from gateway.routes.chat import ChatRoute
from gateway.routes.chunk import ChunkRoute
from gateway.routes.completions import CompletionRoute
from gateway.routes.embeddings import EmbeddingsRoute
from gateway.routes.gpu import GpuRoutes
from gateway.routes.messages import MessagesRoute
from gateway.routes.models import ModelRoutes
from gateway.routes.operations import OperationsRoutes
from gateway.routes.pages import PageRoutes
from gateway.routes.rerank import RerankRoutes
from gateway.routes.tei import TeiRoutes
from gateway.routes.watching import WatchingRoute
from gateway.settings import GatewaySettings
from gateway.status import StatusReport
from gateway.traces import Traced
from gateway.url_sources import url_source
from gateway.vector_cache.building import with_vector_cache
from gateway.vocabulary import PUBLISHED, OpenAIVocabulary
from gateway.watching import StatusFeed, Watched
from gateway.writers import Writers
from gateway.writing import Scribe
from mesh import tracing
from mesh.clients.chunking import AsyncChunkingServiceClient
from mesh.clients.embedding import AsyncEmbeddingServiceClient
from mesh.clients.gpu import AsyncGPUServiceClient
from mesh.clients.llm import AsyncLLMServiceClient
from mesh.clients.reranking import AsyncRerankingServiceClient
from mesh.hop import HopSettings
from mesh.tls.configured import client_tls
from mesh.version import VERSION

if TYPE_CHECKING:  # cryptography is not loaded for a gateway without TLS
    from mesh.tls.client import ClientTls


def dial(settings: GatewaySettings, tls: ClientTls | None = None) -> Peers:
    """The workers' clients, each on a hop of its own: one breaker, limiter and probe per capability."""
    services = settings.services
    timeouts = settings.timeouts
    llm = services.llm

    def hop(seconds: float, slow_call_seconds: float | None) -> HopSettings:
        breaker = settings.breaker
        return HopSettings(
            default_deadline_seconds=seconds,
            attempt_timeout_seconds=min(seconds, 3600.0),
            slow_call_seconds=slow_call_seconds,
            failure_threshold=breaker.failure_threshold,
            breaker_timeout_seconds=breaker.timeout_seconds,
            failure_rate=breaker.failure_rate,
            minimum_calls=breaker.minimum_calls,
            window_seconds=breaker.window_seconds,
        )

    def writer(url: str, slow_call_seconds: float | None, name: str = "") -> AsyncLLMServiceClient:
        return AsyncLLMServiceClient(url, hop=hop(timeouts.llm_seconds, slow_call_seconds), tls=tls, name=name)

    writers = {
        name: writer(model.url, model.slow_call_seconds or llm.slow_call_seconds, writer_name(name))
        for name, model in llm.models.items()
    }
    return Peers(
        embedder=AsyncEmbeddingServiceClient(
            services.embedding.url, hop=hop(timeouts.embedding_seconds, services.embedding.slow_call_seconds), tls=tls
        ),
        reranker=AsyncRerankingServiceClient(
            services.reranking.url, hop=hop(timeouts.reranking_seconds, services.reranking.slow_call_seconds), tls=tls
        ),
        chunker=AsyncChunkingServiceClient(
            services.chunking_url, hop=hop(timeouts.chunking_seconds, services.chunking_slow_call_seconds), tls=tls
        ),
        gpu=AsyncGPUServiceClient(
            services.gpu.url, hop=hop(timeouts.gpu_seconds, services.gpu.slow_call_seconds), tls=tls
        ),
        writer=writer(llm.url, llm.slow_call_seconds) if llm.url else next(iter(writers.values())),
        writers=writers,
    )


def writer_name(model: str) -> str:
    """What the hop to a model's own worker is called, in metrics and on the status page."""
    return f"llm:{model}"


def create_app(
    settings: GatewaySettings,
    *,
    peers: Peers | None = None,
    lifecycle: Lifecycle | None = None,
    door: Door | None = None,
) -> FastAPI:
    """The gateway.

    Args:
        settings: all that can be told to it.
        peers: who answers; left out, the workers that the settings name.
        lifecycle: shared with whoever runs the app and tells it to drain.
        door: shared with the server, which may turn requests away by it before they come here.

    Raises:
        SettingsError: what the settings ask for is not installed, or certificates cannot be used.
    """
    tls = client_tls() if peers is None else None
    peers = peers or dial(settings, tls)
    peers = replace(peers, embedder=with_vector_cache(peers.embedder, settings))
    lifecycle = lifecycle or Lifecycle()
    door = door or Door.of(settings, lifecycle)
    keys = with_keys(settings)
    door.guard = keys.guard if keys else None
    app = FastAPI(
        title="Torch Isolation Mesh",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # FastAPI's own telemetry asks three providers per request, and can record bodies; ours does neither.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        lifespan=_lifespan(peers, lifecycle, keys),
    )
    report = _report(settings, peers, lifecycle, keys=keys, tls=tls)
    door.routes.update(_mount(app, settings, peers, door, report))
    limits = settings.limits
    body_limits = BodyLimits(
        json_bytes=limits.max_json_bytes,
        upload_bytes=limits.max_upload_bytes,
        json_seconds=settings.timeouts.body_seconds,
        # The worker's deadline counts from the request's first byte too, and comes first where it has begun.
        upload_seconds=settings.timeouts.chunking_seconds + 1,
        # Half of the places stay for requests that are being worked on.
        most_coming=max(1, limits.max_concurrent_requests // 2),
    )
    # These layers in place of the framework's own, which would render errors, open exit stacks and look for handlers
    # again for every request, after ours have done so.
    app.middleware_stack = folded(
        Exact(app.router),
        *(() if tracing.active is None else (Traced,)),
        partial(Account, journal=door.journal, lifecycle=lifecycle),
        Framing,
        partial(HostCheck, allowed=allowed_hosts(settings)),
        *guarding(keys),
        partial(Admission, places=door.places),
        *rationing(keys),
        partial(BodyCap, limits=body_limits),
        Attention,
    )
    return app


def _mount(
    app: FastAPI, settings: GatewaySettings, peers: Peers, door: Door, report: StatusReport
) -> Mapping[tuple[str, str], PlainRoute]:
    """Routes are tried in this order, so those that are asked most stand first. Returns them by method and path."""
    lifecycle = door.lifecycle
    catalogue = Catalogue(peers, aliases=settings.models.aliases, info_seconds=settings.timeouts.info_seconds)
    vocabulary = OpenAIVocabulary(PUBLISHED[settings.vocabulary.name], _vocabulary_folder(settings))
    ranker = Ranker(peers.reranker, catalogue, settings)
    scribe = Scribe(Writers(peers, info_seconds=settings.timeouts.info_seconds), catalogue, settings)
    api = Api(app)
    EmbeddingsRoute(peers.embedder, catalogue, vocabulary, settings).mount(api)
    ChatRoute(scribe).mount(api)
    RerankRoutes(ranker).mount(api)
    TeiRoutes(peers.embedder, ranker, settings).mount(api)
    CompletionRoute(scribe, vocabulary).mount(api)
    MessagesRoute(scribe).mount(api)
    ChunkRoute(peers.chunker, catalogue, settings, url_source(settings.url_sources)).mount(api)
    OperationsRoutes(lifecycle, report).mount(api)
    feed = StatusFeed(Watched(report, peers, door.journal.recent, door.places, lifecycle))
    WatchingRoute(feed, settings.streams, door.guard).mount(api)
    ModelRoutes(catalogue, created=lifecycle.started_unix_seconds).mount(api)
    GpuRoutes(peers.gpu, settings, door.guard).mount(api)
    PageRoutes().mount(app)
    return api.routes


def _report(
    settings: GatewaySettings, peers: Peers, lifecycle: Lifecycle, *, keys: Keys | None, tls: ClientTls | None
) -> StatusReport:
    return StatusReport(
        peers,
        lifecycle,
        info_seconds=settings.timeouts.info_seconds,
        targets=_targets(settings),
        hints=_CHOOSE_ANOTHER,
        certificate=tls.status if tls else None,
        keys=keys.status if keys else None,
    )


_CHOOSE_ANOTHER = {
    "embedding": "Start the embedding worker with EMBEDDING_MODEL set to a path or a hub name.",
    "reranking": "Start the reranking worker with RERANKING_MODEL set to a path or a hub name.",
    "chunking": "Name the chunker in the request, or set gateway.chunking.default_chunker.",
    "gpu": "Run the gpu-services worker on a machine with an NVIDIA driver.",
    "llm": "Start the LLM worker with LLM_MODEL set to a path or a hub name.",
}


def _targets(settings: GatewaySettings) -> dict[str, str]:
    services = settings.services
    return {
        "embedding": services.embedding.url,
        "reranking": services.reranking.url,
        "chunking": services.chunking_url,
        "gpu": services.gpu.url,
        **({"llm": services.llm.url} if services.llm.url else {}),
        **{writer_name(name): model.url for name, model in services.llm.models.items()},
    }


def _vocabulary_folder(settings: GatewaySettings) -> Path | None:
    """The configured folder, or the one where tiktoken itself keeps its files."""
    cached = os.environ.get("TIKTOKEN_CACHE_DIR", "").strip()
    return settings.vocabulary.directory or (Path(cached) if cached else None)


def _lifespan(
    peers: Peers, lifecycle: Lifecycle, keys: Keys | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Hops live as long as the app, on its event loop. Workers that are down do not stop the start."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001 - Starlette's signature
        peers.start()
        if keys:
            keys.start()
        lifecycle.ready = True
        try:
            yield
        finally:
            lifecycle.ready = False
            if keys:
                await keys.close()
            await peers.close()

    return lifespan
