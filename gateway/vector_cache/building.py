"""From settings to an embedder with or without a cache before it."""

from __future__ import annotations

from gateway.peers import Embedder
from gateway.settings import GatewaySettings
from gateway.vector_cache.settings import VectorCacheSettings
from gateway.vector_cache.stores import MemoryStore, VectorStore


def with_vector_cache(embedder: Embedder, settings: GatewaySettings) -> Embedder:
    """The embedder itself, or a CachedEmbedder around it where the settings ask for one.

    Raises:
        SettingsError: see make_store.
    """
    if not settings.vector_cache.enabled:
        return embedder
    # A gateway that keeps nothing loads nothing of this.
    from gateway.vector_cache.embedder import CachedEmbedder
    from gateway.vector_cache.served import ServedModels

    return CachedEmbedder(
        embedder,
        make_store(settings.vector_cache),
        seconds=settings.timeouts.embedding_seconds,
        served=ServedModels(embedder, info_seconds=settings.timeouts.info_seconds),
    )


def make_store(settings: VectorCacheSettings) -> VectorStore:
    """The store that the settings name.

    Raises:
        SettingsError: Redis is asked for, and its library is not installed or cannot read the URL.
    """
    if settings.type == "memory":
        return MemoryStore(max_bytes=settings.max_bytes, ttl_seconds=settings.ttl_seconds)
    from gateway.vector_cache.redis_store import RedisStore, connect

    seconds = settings.redis_timeout_seconds
    client = connect(settings.redis_url.get_secret_value(), timeout_seconds=seconds)
    return RedisStore(client, timeout_seconds=seconds, ttl_seconds=settings.ttl_seconds)
