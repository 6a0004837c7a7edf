"""Documents by URL, over real sockets: what is fetched, and that nothing else is ever connected to."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.app import create_app
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers
from gateway.url_sources.fetching import UrlSource
from gateway.url_sources.settings import UrlSourceSettings
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, MeshError, Overloaded, PayloadTooLarge

pytest.importorskip("httpcore", reason="the gateway's extra has httpcore")

OURS = "127.0.0.1"
"""Where the tests' document server listens. The settings below allow it, and nothing else that is not public."""
INNER = "127.0.0.2"
"""Where a service listens that must never be asked."""


@dataclass
class Site:
    """An HTTP server that answers by path, and counts connections.

    ``answers`` holds whole answers as bytes; ``asked`` all requests as they came.
    """

    port: int = 0
    answers: dict[str, bytes] = field(default_factory=dict)
    asked: list[bytes] = field(default_factory=list)
    connections: int = 0
    hold: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one answer, or silence for /silence, or a slow drip for /drip."""
        self.connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head)
            path = head.split(b" ")[1].decode()
            if path == "/silence":
                await self.hold.wait()
            writer.write(self.answers.get(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
            if path == "/drip":
                while True:
                    await writer.drain()
                    await asyncio.sleep(0.02)
                    writer.write(b"1\r\na\r\n")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has what it wants, or wants no more
        finally:
            writer.close()


def answer(body: bytes, *headers: str, status: str = "200 OK", sized: bool = True) -> bytes:
    """An HTTP answer."""
    lines = [f"HTTP/1.1 {status}", *headers, *([f"Content-Length: {len(body)}"] if sized else [])]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def leading_to(url: str) -> bytes:
    """A redirect."""
    return answer(b"", f"Location: {url}", status="302 Found")


@asynccontextmanager
async def listening(host: str, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[Site]:
    """A site on an address of this machine."""
    site = Site()
    server = await asyncio.start_server(site.serve, host, port, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        site.hold.set()
        server.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """The document server."""
    async with listening(OURS) as made:
        made.answers["/notes.md"] = answer(b"one\ntwo", "Content-Type: text/markdown; charset=utf-8")
        yield made


@pytest.fixture
async def inner() -> AsyncIterator[Site]:
    """A service of the inner network."""
    async with listening(INNER) as made:
        made.answers["/"] = made.answers["/notes.md"] = answer(b"inner secrets", "Content-Type: text/plain")
        yield made
        assert made.connections == 0


class Names:
    """A name server of the test: gives each name's answers in turn, and the last one again."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self.answers = {name.replace("_", "."): list(given) for name, given in answers.items()}
        self.asked: Counter[str] = Counter()

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """The next answer; OSError for a name that there is none for."""
        self.asked[host] += 1
        if host not in self.answers:
            raise OSError("no such name")
        given = self.answers[host]
        return given.pop(0) if len(given) > 1 else given[0]


def settings_for(*sites: Site, **changed: Any) -> UrlSourceSettings:
    """URL sources on, for the tests' sites."""
    told = {
        "enabled": True,
        "schemes": ["http", "https"],
        "ports": [each.port for each in sites],
        "allowed_networks": [f"{OURS}/32"],
        **changed,
    }
    return UrlSourceSettings.model_validate(told)


async def fetched(source: UrlSource, url: str, seconds: float = 10.0) -> bytes:
    """The whole document."""
    async with source.open(url, Deadline.after(seconds)) as document:
        return b"".join([frame async for frame in document.frames()])


async def reason_of(source: UrlSource, url: str) -> str:
    """Why it is not fetched."""
    with pytest.raises(MeshError) as refused:
        await fetched(source, url)
    return refused.value.reason


async def test_a_document_is_fetched_and_chunked(site: Site) -> None:
    """From the URL to the worker: bytes, name and type; and nothing of the caller's goes along."""
    peers = FakePeers()
    settings = GatewaySettings.model_validate({"url_sources": settings_for(site).model_dump()})
    app = create_app(settings, peers=peers.as_peers())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client:
        headers = {"authorization": "Bearer caller-secret", "cookie": "session=caller-secret"}
        url = f"http://{OURS}:{site.port}/notes.md"
        found = await client.post("/v1/chunk", json={"url": url, "max_tokens": 64}, headers=headers)
    assert found.status_code == 200
    assert [chunk["text"] for chunk in found.json()["chunks"]] == ["one", "two"]
    options = peers.chunker.calls[-1].arguments[0]
    assert (options.filename, options.media_type, options.max_tokens) == ("notes.md", "text/markdown", 64)
    (request,) = site.asked
    assert request.startswith(b"GET /notes.md HTTP/1.1\r\n")
    assert f"Host: {OURS}:{site.port}\r\n".encode() in request
    assert b"caller-secret" not in request
    assert b"Accept-Encoding: identity" in request


async def test_it_is_off_by_default(site: Site) -> None:
    """A URL is refused with the setting's name, nothing is connected to, and the code for it is not even loaded."""
    app = create_app(GatewaySettings(), peers=FakePeers().as_peers())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client:
        refused = await client.post("/v1/chunk", json={"url": f"http://{OURS}:{site.port}/notes.md"})
    assert (refused.status_code, refused.json()["reason"]) == (409, "URL_SOURCES_OFF")
    assert "gateway.url_sources.enabled" in refused.json()["detail"]
    assert site.connections == 0


@pytest.mark.parametrize(
    "host",
    [
        INNER,
        "127.0.0.3",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.2]",
        "[::ffff:7f00:2]",
        "[64:ff9b::7f00:2]",
        "[2002:7f00:2::]",
        "0.0.0.0",
        "169.254.169.254",
        "100.64.0.1",
        "inner.example",
        "inner.example.",
        "mapped.example",
        "mixed.example",
        "nowhere.example",
        "metadata.example",
        "2130706434",
        "0x7f000002",
        "0x7f.2",
        "0177.0.0.2",
        "127.2",
        f"user@{INNER}",
        f"{OURS}@{INNER}",
        f"{OURS}\\@{INNER}",
        f"{OURS}%2f@{INNER}",
        "127\u30020\u30020\u30022",
        "\u2460\u2461\u2466.0.0.2",
    ],
)
async def test_no_way_of_writing_it_reaches_an_inner_address(inner: Site, host: str) -> None:
    """The table of server-side request forgery: every spelling is refused, and the inner service sees no connection."""
    names = Names(
        localhost=[["127.0.0.2", "::1"]],
        inner_example=[[INNER]],
        mapped_example=[["::ffff:127.0.0.2"]],
        mixed_example=[["93.184.215.14", INNER]],
        metadata_example=[["169.254.169.254"]],
    )
    source = UrlSource(settings_for(inner), resolve=names.resolve)
    assert await reason_of(source, f"http://{host}:{inner.port}/") in ("URL_INVALID", "URL_UNREACHABLE")
    assert inner.connections == 0


@pytest.mark.parametrize("url", ["file:///etc/passwd", "gopher://127.0.0.2:{port}/_GET", "ftp://127.0.0.2:{port}/"])
async def test_no_other_scheme_is_spoken(inner: Site, url: str) -> None:
    """Whatever it would reach."""
    assert await reason_of(UrlSource(settings_for(inner)), url.format(port=inner.port)) == "URL_INVALID"


async def test_what_was_checked_is_what_is_asked(site: Site, inner: Site) -> None:
    """A name that changes its address between two questions (rebinding) gets no second question."""
    names = Names(rebinding_example=[[OURS], [INNER]])
    source = UrlSource(settings_for(site, inner), resolve=names.resolve)
    assert await fetched(source, f"http://rebinding.example:{site.port}/notes.md") == b"one\ntwo"
    assert names.asked["rebinding.example"] == 1
    assert b"Host: rebinding.example:" in site.asked[0]
    assert await reason_of(source, f"http://rebinding.example:{inner.port}/notes.md") == "URL_UNREACHABLE"


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.2:{inner}/",
        "//127.0.0.2:{inner}/",
        "http://inner.example:{inner}/",
        "http://[::ffff:127.0.0.2]:{inner}/",
        "http://2130706434:{inner}/",
        "http://user@127.0.0.2:{inner}/",
        "\\\\127.0.0.2:{inner}\\",
        "file:///etc/passwd",
        "gopher://127.0.0.2:{inner}/",
        "http://127.0.0.1:1/",
    ],
)
@pytest.mark.parametrize("steps", [1, 2])
async def test_every_redirect_is_checked(site: Site, inner: Site, target: str, steps: int) -> None:
    """The first one and the second one: address, name, scheme and port."""
    names = Names(inner_example=[[INNER]])
    site.answers["/1"] = leading_to("/2" if steps == 2 else target.format(inner=inner.port))
    site.answers["/2"] = leading_to(target.format(inner=inner.port))
    reason = await reason_of(
        UrlSource(settings_for(site, inner), resolve=names.resolve), f"http://{OURS}:{site.port}/1"
    )
    assert reason in ("URL_INVALID", "URL_NOT_ALLOWED", "URL_UNREACHABLE")
    assert site.connections == steps


async def test_redirects_are_followed_so_far(site: Site) -> None:
    """As many as are allowed, and not one more."""
    for step in range(5):
        site.answers[f"/{step}"] = leading_to(f"/{step + 1}" if step < 4 else "/notes.md")
    source = UrlSource(settings_for(site, max_redirects=2))
    assert await fetched(source, f"http://{OURS}:{site.port}/3") == b"one\ntwo"
    assert await reason_of(source, f"http://{OURS}:{site.port}/2") == "URL_REDIRECTS"


async def test_only_allowed_schemes_ports_and_hosts_are_asked(site: Site) -> None:
    """The operator's lists hold for the URL itself."""
    names = Names(docs_example=[[OURS]], a_docs_example=[[OURS]], evildocs_example=[[OURS]])
    listed = UrlSource(settings_for(site, allowed_hosts=["*.docs.example"]), resolve=names.resolve)
    assert await fetched(listed, f"http://a.docs.example:{site.port}/notes.md") == b"one\ntwo"
    for host in ("docs.example", "evildocs.example", OURS):
        assert await reason_of(listed, f"http://{host}:{site.port}/notes.md") == "URL_NOT_ALLOWED"
    https_only = UrlSource(settings_for(site, schemes=["https"]))
    assert await reason_of(https_only, f"http://{OURS}:{site.port}/notes.md") == "URL_NOT_ALLOWED"
    other_port = UrlSource(settings_for(ports=[site.port - 1 or 1]))
    assert await reason_of(other_port, f"http://{OURS}:{site.port}/notes.md") == "URL_NOT_ALLOWED"
    assert site.connections == 1


async def test_another_address_of_the_same_name_is_tried(site: Site) -> None:
    """One that takes no connection costs nothing but the try; all of them were checked."""
    names = Names(two_example=[["127.0.0.9", OURS]])
    source = UrlSource(settings_for(site, allowed_networks=["127.0.0.0/8"]), resolve=names.resolve)
    assert await fetched(source, f"http://two.example:{site.port}/notes.md") == b"one\ntwo"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (answer(b"no", status="500 Oops"), "URL_STATUS"),
        (answer(b"no", "Content-Type: text/plain", status="206 Partial Content"), "URL_STATUS"),
        (answer(b"GIF8", "Content-Type: image/gif"), "URL_TYPE"),
        (answer(b"{}", "Content-Type: application/json"), "URL_TYPE"),
        (answer(b"\x1f\x8b", "Content-Type: text/plain", "Content-Encoding: gzip"), "URL_ENCODED"),
        (answer(b"a" * 5000, "Content-Type: text/plain"), "DOCUMENT_TOO_LARGE"),
        (answer(b"a" * 5000, "Content-Type: text/plain", sized=False), "DOCUMENT_TOO_LARGE"),
        (answer(b"a", "Content-Type: text/plain", "Content-Length: 900", sized=False), "URL_INCOMPLETE"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Many: " + b"a" * 300_000 + b"\r\n\r\n", "URL_UNREACHABLE"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "URL_UNREACHABLE"),
        (b"", "URL_UNREACHABLE"),
    ],
)
async def test_an_answer_that_is_no_document_is_refused(site: Site, given: bytes, reason: str) -> None:
    """Errors, other types, compressed bytes, too many of them, too few, headers without end, other protocols."""
    site.answers["/it"] = given
    assert await reason_of(UrlSource(settings_for(site, max_bytes=4096)), f"http://{OURS}:{site.port}/it") == reason


@pytest.mark.parametrize("path", ["/silence", "/drip"])
async def test_a_slow_server_is_given_up(site: Site, path: str) -> None:
    """One that says nothing, and one that says a little again and again."""
    site.answers["/drip"] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    source = UrlSource(settings_for(site, seconds=0.3))
    began = asyncio.get_running_loop().time()
    assert await reason_of(source, f"http://{OURS}:{site.port}{path}") == "URL_TIMEOUT"
    assert asyncio.get_running_loop().time() - began < 3


async def test_a_worker_that_takes_its_time_costs_the_server_nothing(site: Site) -> None:
    """Only waiting for the server counts."""
    site.answers["/big"] = answer(b"a" * 3_000_000, "Content-Type: text/plain")
    source = UrlSource(settings_for(site, seconds=0.5))
    size = 0
    async with source.open(f"http://{OURS}:{site.port}/big", Deadline.after(10)) as document:
        async for frame in document.frames():
            size += len(frame)
            if size < 1_500_000:
                await asyncio.sleep(0.1)
    assert size == 3_000_000


async def test_no_more_than_so_many_are_fetched_at_once(site: Site) -> None:
    """One more is refused at once, and a place that is left is taken again."""
    source = UrlSource(settings_for(site, max_fetches=1))
    url = f"http://{OURS}:{site.port}/notes.md"
    async with source.open(url, Deadline.after(10)):
        with pytest.raises(Overloaded):
            await fetched(source, url)
    assert await fetched(source, url) == b"one\ntwo"


async def test_what_ends_the_document_early_is_told_to_the_client(site: Site) -> None:
    """Not the worker's view of it, which only sees that the document ended."""
    site.answers["/it"] = answer(b"a" * 5000, "Content-Type: text/plain", sized=False)
    settings = GatewaySettings.model_validate({"url_sources": settings_for(site, max_bytes=4096).model_dump()})
    app = create_app(settings, peers=FakePeers().as_peers())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client:
        url = f"http://{OURS}:{site.port}/it"
        refused = await client.post("/v1/chunk", json={"url": url})
        streamed = await client.post("/v1/chunk", json={"url": url}, headers={"accept": "application/x-ndjson"})
    assert (refused.status_code, refused.json()["reason"]) == (PayloadTooLarge.http_status, "DOCUMENT_TOO_LARGE")
    last = json.loads(streamed.text.splitlines()[-1])
    assert last.get("reason", last.get("error", {}).get("reason")) == "DOCUMENT_TOO_LARGE"


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Certificate and key of docs.example."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", str(key), "-out", str(certificate), "-days", "1", "-subj", "/CN=docs.example",
            "-addext", "subjectAltName=DNS:docs.example",
        ],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return certificate, key


async def test_certificates_are_checked_against_the_name(certificate: tuple[Path, Path]) -> None:
    """Though an address is asked: the right name passes, another name and an unknown authority do not."""
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(*certificate)
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    names = Names(docs_example=[[OURS]], other_example=[[OURS]])
    async with listening(OURS, server_tls) as site:
        site.answers["/notes.md"] = answer(b"words", "Content-Type: text/plain")
        source = UrlSource(settings_for(site), resolve=names.resolve, tls=trusting)
        assert await fetched(source, f"https://docs.example:{site.port}/notes.md") == b"words"
        assert await reason_of(source, f"https://other.example:{site.port}/notes.md") == "URL_UNREACHABLE"
        strangers = UrlSource(settings_for(site), resolve=names.resolve)
        assert await reason_of(strangers, f"https://docs.example:{site.port}/notes.md") == "URL_UNREACHABLE"
        site.answers["/down"] = leading_to("http://docs.example/notes.md")
        assert await reason_of(source, f"https://docs.example:{site.port}/down") == "URL_NOT_ALLOWED"


async def test_a_slow_name_server_holds_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names it is asked for: what the gateway does on threads, as following its keys, goes on."""
    answered = threading.Event()

    def slow(*_: object, **__: object) -> list[Any]:
        answered.wait(30)
        raise OSError("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    source = UrlSource(settings_for(ports=[80], max_fetches=200))
    asking = [asyncio.create_task(reason_of(source, f"http://name{n}.example/")) for n in range(100)]
    try:
        await asyncio.sleep(0.1)
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(lambda: "on a thread") == "on a thread"
    finally:
        answered.set()
    assert set(await asyncio.gather(*asking)) == {"URL_UNREACHABLE"}


def test_settings_that_cannot_be_meant_are_refused() -> None:
    """A network that is none, a host with a path, no port at all."""
    wrongs: tuple[dict[str, Any], ...] = (
        {"allowed_networks": ["10.0.0.1/8"]},
        {"allowed_hosts": ["a.example/docs"]},
        {"ports": []},
    )
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"allowed|ports"):
            UrlSourceSettings.model_validate({"enabled": True, **wrong})


def test_refusals_do_not_tell_which_names_exist() -> None:
    """What does not exist and what is private read the same, for whoever asks."""
    names = Names(inner_example=[[INNER]])

    async def words(url: str) -> str:
        with pytest.raises(InvalidRequest) as refused:
            await fetched(UrlSource(settings_for(ports=[80]), resolve=names.resolve), url)
        return refused.value.message

    async def both() -> tuple[str, str]:
        return await words("http://inner.example/"), await words("http://nowhere.example/")

    first, second = asyncio.run(both())
    assert first == second
