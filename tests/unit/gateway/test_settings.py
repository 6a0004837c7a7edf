"""The gateway's settings: file, environment, and mistakes in both."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.app import dial
from gateway.settings import GatewaySettings
from mesh.hop import Hop, HopSettings
from mesh.settings import SettingsError

GUIDE = """
gateway:
  services:
    gpu:
      url: "gpu-services:50051"
    embedding:
      url: "embedding-services:50051"
    reranking:
      url: "reranking-services:50051"
  chunking:
    default_chunker: "docling"
    chunkers:
      docling:
        enabled: true
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that GATEWAY_CONFIG names, with the migration guide's text."""
    path = tmp_path / "gateway.yaml"
    path.write_text(GUIDE)
    monkeypatch.setenv("GATEWAY_CONFIG", str(path))
    return path


def test_the_migration_guides_file_works_as_it_is_printed(config: Path) -> None:
    """Chunking goes to the gpu service where no other is named."""
    assert config.exists()
    settings = GatewaySettings.load()
    assert settings.services.embedding.url == "embedding-services:50051"
    assert settings.services.chunking_url == "gpu-services:50051"
    assert settings.services.llm.url == "127.0.0.1:50054"
    assert settings.chunking.chunkers.docling.enabled


def test_the_shipped_file_holds_the_defaults() -> None:
    """What the file shows is what happens without it."""
    shipped = Path(__file__).parents[3] / "config" / "gateway.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATEWAY_CONFIG", str(shipped))
        from_file = GatewaySettings.load()
    assert from_file.model_dump(exclude={"config"}) == GatewaySettings.load().model_dump(exclude={"config"})


@pytest.mark.usefixtures("config")
def test_the_environment_stands_above_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service's own variable stands above its nested one, and one value does not wipe out its section."""
    monkeypatch.setenv("GATEWAY_SERVICES__RERANKING__URL", "nested:1")
    monkeypatch.setenv("GATEWAY_SERVICES__EMBEDDING__URL", "nested:1")
    monkeypatch.setenv("EMBEDDING_SERVICE_URL", " a:1 , b:2 ")
    monkeypatch.setenv("GATEWAY_LIMITS__MAX_INPUTS", "7")
    settings = GatewaySettings.load()
    assert settings.services.embedding.url == "a:1,b:2"
    assert settings.services.reranking.url == "nested:1"
    assert settings.services.gpu.url == "gpu-services:50051"
    assert (settings.limits.max_inputs, settings.limits.max_documents) == (7, 10_000)


@pytest.mark.parametrize("target", ["host:1", "a:1,b:2", "dns:///name:50051", "unix:/run/x.sock", "[::1]:50051"])
def test_targets_that_grpc_takes(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One endpoint, several, a name to resolve, a socket."""
    monkeypatch.setenv("LLM_SERVICE_URL", target)
    assert GatewaySettings.load().services.llm.url == target


@pytest.mark.parametrize("target", ["http://host:1", "host", "host:port", ":1", "a:1,,b:2"])
def test_targets_that_would_never_connect_stop_the_start(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheme, a missing port: told at the start, not at the first request."""
    monkeypatch.setenv("LLM_SERVICE_URL", target)
    with pytest.raises(SettingsError, match="host:port"):
        GatewaySettings.load()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("GATEWAY_LIMITS__MAX_INPUT", "GATEWAY_LIMITS__MAX_INPUTS"),
        ("GATEWAY_PROT", "GATEWAY_PORT"),
        ("EMBEDING_SERVICE_URL", "EMBEDDING_SERVICE_URL"),
        ("GPUS_SERVICE_URL", "GPU_SERVICE_URL"),
        ("VECTOR_CACHE_TYP", "VECTOR_CACHE_TYPE"),
        ("ENABLE_VECTOR_CASH", "ENABLE_VECTOR_CACHE"),
    ],
)
def test_a_misspelt_variable_stops_the_start_and_names_the_right_one(
    name: str, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that is silently ignored is found in production."""
    monkeypatch.setenv(name, "5")
    with pytest.raises(SettingsError, match=f"{name}.*{nearest}"):
        GatewaySettings.load()


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program's service URL, and what Kubernetes injects, are none of our business."""
    monkeypatch.setenv("BILLING_SERVICE_URL", "http://billing")
    monkeypatch.setenv("GATEWAY_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("GATEWAY_PORT_8000_TCP", "tcp://10.0.0.1:8000")
    assert GatewaySettings.load().port == 8000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gateway:\n  services:\n    embeding: {url: 'a:1'}\n", r"gateway.services.embeding.*Did you mean embedding"),
        ("gateway:\n  limits: {max_json_byte: 5}\n", r"gateway.limits.max_json_byte.*max_json_bytes"),
        ("gateway:\n  port: many\n", r"gateway.port \(GATEWAY_PORT\)"),
        ("gatway: {}\n", "one key, gateway; it holds gatway"),
        ("- a\n", "it holds no mapping"),
        ("gateway: 7\n", "mapping of settings"),
        ("gateway: [\n", "not YAML"),
        ("gateway:\n  chunking: {default_chunker: semantic}\n", "gateway.chunking.default_chunker"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_place(config: Path, text: str, message: str) -> None:
    """The key at fault, and the nearest right one."""
    config.write_text(text)
    with pytest.raises(SettingsError, match=message):
        GatewaySettings.load()


def test_a_file_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the default file may be missing."""
    monkeypatch.setenv("GATEWAY_CONFIG", "/nowhere/gateway.yaml")
    with pytest.raises(SettingsError, match="GATEWAY_CONFIG"):
        GatewaySettings.load()


def test_aliases_come_from_the_file(config: Path) -> None:
    """Names of other vendors' models can reach ours."""
    config.write_text("gateway:\n  models:\n    aliases: {text-embedding-3-small: all-MiniLM-L6-v2}\n")
    assert GatewaySettings.load().models.aliases == {"text-embedding-3-small": "all-MiniLM-L6-v2"}


def test_breakers_are_set_for_all_services_and_slowness_for_each(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One section tells when breakers open; what is slow differs by service, and a document is not a GPU reading."""
    config.write_text(
        GUIDE.replace('url: "embedding-services:50051"', 'url: "embedding-services:50051"\n      slow_call_seconds: 2')
        + "  breaker:\n    failure_threshold: 3\n    timeout_seconds: 20\n    minimum_calls: 50\n"
    )
    monkeypatch.setenv("GATEWAY_BREAKER__WINDOW_SECONDS", "30")
    monkeypatch.setenv("GATEWAY_SERVICES__GPU__SLOW_CALL_SECONDS", "1")
    peers = dial(GatewaySettings.load())
    hops = {peer.hop.status().name: peer.hop for peer in peers.all()}
    told = {name: hop.settings for name, hop in hops.items() if isinstance(hop, Hop)}
    assert {name: settings.slow_call_seconds for name, settings in told.items()} == {
        "embedding": 2.0,
        "reranking": None,
        "chunking": None,
        "gpu": 1.0,
        "llm": None,
    }
    for settings in told.values():
        assert (settings.failure_threshold, settings.breaker_timeout_seconds, settings.minimum_calls) == (3, 20.0, 50)
        assert (settings.window_seconds, settings.failure_rate) == (30.0, 0.5)


def test_without_a_word_about_breakers_they_are_as_the_hops_make_them() -> None:
    """The defaults are written in two places; they must not drift apart."""
    for peer in dial(GatewaySettings()).all():
        assert isinstance(peer.hop, Hop)
        told = peer.hop.settings.model_dump(exclude={"default_deadline_seconds", "attempt_timeout_seconds"})
        assert told == HopSettings().model_dump(exclude={"default_deadline_seconds", "attempt_timeout_seconds"})


def test_the_vector_caches_variables_need_no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off unless asked for; each variable stands above its prefixed twin."""
    assert not GatewaySettings.load().vector_cache.enabled
    monkeypatch.setenv("GATEWAY_VECTOR_CACHE__TYPE", "memory")
    monkeypatch.setenv("ENABLE_VECTOR_CACHE", "true")
    monkeypatch.setenv("VECTOR_CACHE_TYPE", "redis")
    monkeypatch.setenv("REDIS_URL", "rediss://user:secret@cache:6380/1")
    monkeypatch.setenv("VECTOR_CACHE_TTL_SECONDS", "60")
    monkeypatch.setenv("VECTOR_CACHE_MAX_BYTES", "2000000")
    cache = GatewaySettings.load().vector_cache
    assert (cache.enabled, cache.type, cache.ttl_seconds, cache.max_bytes) == (True, "redis", 60, 2_000_000)
    assert cache.redis_url.get_secret_value().startswith("rediss://")
    assert "secret" not in repr(cache)


def test_only_a_redis_that_is_used_needs_a_right_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program's REDIS_URL stops nothing; a wrong one of ours does, without being repeated."""
    monkeypatch.setenv("REDIS_URL", "http://:secret@elsewhere")
    assert GatewaySettings.load().port == 8000
    monkeypatch.setenv("ENABLE_VECTOR_CACHE", "1")
    monkeypatch.setenv("VECTOR_CACHE_TYPE", "redis")
    with pytest.raises(SettingsError, match="REDIS_URL") as refused:
        GatewaySettings.load()
    assert "secret" not in str(refused.value)
