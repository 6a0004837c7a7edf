"""The file of keys is followed while the gateway runs."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from gateway.app import create_app
from gateway.keys.book import KeyBookError, changing, read, revoked
from gateway.keys.form import id_of
from gateway.keys.records import KeyRecord, Limits
from gateway.keys.ring import KeyRing
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers
from gateway.testing.keys import KeyFile
from mesh.errors import Unauthenticated
from mesh.settings import SettingsError

ROOT = Path(__file__).parents[4]
NOW = 1_700_000_500.0


@pytest.fixture
def key(book: KeyFile) -> str:
    """The first key of the file."""
    return book.add()


def ring_of(book: KeyFile, defaults: Limits | None = None) -> KeyRing:
    """On that file, at a fixed time."""
    return KeyRing(book.path, defaults or Limits(), clock=lambda: NOW)


def test_a_key_that_is_added_or_revoked_counts_from_the_next_look(book: KeyFile, key: str) -> None:
    """Neither needs a restart."""
    ring = ring_of(book)
    second = book.add()
    with pytest.raises(Unauthenticated):
        ring.find(second)
    ring.look()
    assert ring.find(second).id == id_of(second)
    with changing(book.path) as records:
        records[:] = revoked(records, id_of(key) or "", now=1)
    ring.look()
    with pytest.raises(Unauthenticated, match="revoked"):
        ring.find(key)
    assert len(ring) == 1


@pytest.mark.parametrize("harm", ["broken", "deep", "gone", "unreadable"])
def test_a_file_that_cannot_be_read_again_changes_nothing(
    book: KeyFile, key: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Known keys go on; it is told once, in the log and in the status, and over once the file is right again."""
    ring = ring_of(book)
    right = book.path.read_text()
    book.path.unlink()
    if harm == "broken":
        book.path.write_text("{")
    elif harm == "deep":
        book.path.write_text('{"version": 1, "keys": ' + "[" * 100_000)
    elif harm == "unreadable":
        book.path.mkdir()
    with caplog.at_level(logging.ERROR):
        ring.look()
        ring.look()
    assert ring.find(key)
    assert str(book.path) in ring.problem
    assert len(caplog.records) == 1
    if harm == "unreadable":
        book.path.rmdir()
    book.path.write_text(right)
    ring.look()
    assert ring.problem == ""
    book.add()
    ring.look()
    assert len(ring) == 2


async def test_the_follower_goes_on_whatever_happens(
    book: KeyFile, key: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody foresaw is told once, the known keys go on, and the file is followed again afterwards."""
    ring = ring_of(book)
    looks = 0

    def fail_at_first(path: Path) -> tuple[KeyRecord, ...]:
        nonlocal looks
        looks += 1
        if looks < 3:
            raise RuntimeError("nobody foresaw this")
        return read(path)

    monkeypatch.setattr("gateway.keys.ring.read", fail_at_first)
    monkeypatch.setattr("gateway.keys.ring.LOOK_SECONDS", 0.0)
    book.add()
    with caplog.at_level(logging.ERROR):
        following = asyncio.create_task(ring.follow())
        async with asyncio.timeout(10):
            while len(ring) == 1:
                assert ring.find(key)
                await asyncio.sleep(0)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert ring.problem == ""


def test_every_key_is_compared_in_constant_time(book: KeyFile, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A good one, one with a known id and a wrong secret, a stranger's and nonsense: each costs one such comparison."""
    ring, compared = ring_of(book), []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return left == right

    monkeypatch.setattr("gateway.keys.ring.hmac.compare_digest", compare)
    assert ring.find(key).id == id_of(key)
    for other in (key[:20] + key[20:].swapcase(), KeyFile(book.path.with_name("other.json")).add(), "no key"):
        with pytest.raises(Unauthenticated):
            ring.find(other)
    assert compared == [(32, 32)] * 4


def test_a_file_that_did_not_change_is_not_read(book: KeyFile, key: str, caplog: pytest.LogCaptureFixture) -> None:
    """Looking costs one question to the file system."""
    ring = ring_of(book)
    with caplog.at_level(logging.INFO):
        ring.look()
    assert caplog.records == []
    os.utime(book.path, (1, 1))
    with caplog.at_level(logging.INFO):
        ring.look()
    assert [record.message for record in caplog.records] == ["the keys were read again"]


def test_what_a_key_leaves_open_the_gateway_says(book: KeyFile) -> None:
    """Limits of its own stand above the gateway's, one by one."""
    own = book.add(requests_per_minute=5)
    found = ring_of(book, Limits(requests_per_minute=9, max_body_bytes=100)).find(own)
    assert found.limits == Limits(requests_per_minute=5, max_body_bytes=100)


def test_a_start_needs_a_file_with_a_key(tmp_path: Path) -> None:
    """One that is missing, broken or empty stops the start, and the command that makes a key is named."""
    path = tmp_path / "keys.json"
    for text in (None, "{", '{"version": 1, "keys": []}'):
        if text is not None:
            path.write_text(text)
        with pytest.raises(KeyBookError):
            KeyRing(path, Limits())
        with pytest.raises(SettingsError, match="GATEWAY_KEYS__FILE"):
            create_app(GatewaySettings.model_validate({"keys": {"file": path}}), peers=FakePeers().as_peers())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "gateway.example", "", "::ffff:10.0.0.1"])
def test_beyond_loopback_the_gateway_needs_keys_or_a_clear_word(host: str, book: KeyFile, key: str) -> None:
    """Whoever opens it to a network is asked to say who may use it."""

    def start(**keys: object) -> None:
        settings = GatewaySettings.model_validate({"host": host, "keys": keys})
        create_app(settings, peers=FakePeers().as_peers())

    with pytest.raises(SettingsError, match=r"keys.sh add.*GATEWAY_KEYS__FILE.*GATEWAY_KEYS__OPEN_TO_ANYONE"):
        start()
    start(file=book.path)
    start(open_to_anyone=True)


def test_in_a_container_it_goes_by_the_address_of_the_published_port() -> None:
    """There every gateway listens on all addresses, and on which machine's address it is reached decides."""
    for published, starts in (("127.0.0.1", True), ("0.0.0.0", False)):
        settings = GatewaySettings.model_validate({"host": "0.0.0.0", "published_host": published})
        with nullcontext() if starts else pytest.raises(SettingsError, match=r"keys\.sh add"):
            create_app(settings, peers=FakePeers().as_peers())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_loopback_nobody_needs_a_key(host: str) -> None:
    """A mesh on one's own machine starts as it always did."""
    create_app(GatewaySettings.model_validate({"host": host}), peers=FakePeers().as_peers())


def test_without_keys_nothing_of_them_is_loaded_or_asked() -> None:
    """What is off costs nothing: no module beyond the settings, no layer, and one look at the door."""
    look = (
        "import sys; from gateway.app import create_app; from gateway.settings import GatewaySettings as S\n"
        "app = create_app(S()); stack, layers = app.middleware_stack, []\n"
        "while hasattr(stack, '_app'): layers.append(type(stack).__name__); stack = stack._app\n"
        "print(layers, sorted(name for name in sys.modules if name.startswith('gateway.keys.')))"
    )
    ended = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == (
        "['Account', 'Framing', 'HostCheck', 'Admission', 'BodyCap', 'Attention'] "
        "['gateway.keys.building', 'gateway.keys.records', 'gateway.keys.settings']"
    )
