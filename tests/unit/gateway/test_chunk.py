"""Our chunking endpoint, over a stand-in for the worker."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from gateway.app import create_app
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers, RawRequest
from mesh.errors import InvalidRequest, Unavailable

URL = "/v1/chunk"
LINES = {"accept": "application/x-ndjson"}
BOUNDARY = "x1x"
MULTIPART = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def form(*parts: tuple[str, str, bytes], closed: bool = True) -> bytes:
    """A multipart body of (name, file name or "", content)."""
    body = b""
    for name, filename, content in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
        body += f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
    return body + (f"--{BOUNDARY}--\r\n".encode() if closed else b"")


async def test_an_upload_is_chunked(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Chunks, document and usage come back; name, type and fields reach the worker."""
    answer = await client.post(
        URL,
        data={"chunker": "docling-hierarchical", "max_tokens": "64", "tokenizer": "text-embedding-3-small"},
        files={"file": ("notes.md", b"one\ntwo", "text/markdown")},
    )
    assert answer.status_code == 200
    document = answer.json()
    assert document["chunks"][1] == {
        "index": 1,
        "text": "two",
        "headings": ["Title"],
        "pages": [1],
        "tokens": 3,
        "bbox": [{"page": 1, "left": 0.0, "top": 1.0, "right": 2.0, "bottom": 3.0}],
        "contextualized_text": "Title\ntwo",
    }
    assert document["document"]["filename"] == "notes.md"
    assert document["usage"] == {"chunks": 2, "tokens": 7, "characters": 7}
    options = peers.chunker.calls[-1].arguments[0]
    assert (options.filename, options.media_type, options.chunker) == (
        "notes.md",
        "text/markdown",
        "docling-hierarchical",
    )
    assert (options.max_tokens, options.tokenizer) == (64, "sentence-transformers/all-MiniLM-L6-v2")


async def test_text_as_json_is_chunked(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Plain text is the default type, docling-hybrid the default chunker, and the size is told at once."""
    answer = await client.post(URL, json={"text": "one\ntwo"})
    assert [chunk["text"] for chunk in answer.json()["chunks"]] == ["one", "two"]
    options = peers.chunker.calls[-1].arguments[0]
    assert (options.media_type, options.chunker, options.size_bytes) == ("text/plain", "docling-hybrid", 7)


async def test_lines_are_streamed_and_the_last_one_makes_it_whole(client: httpx.AsyncClient) -> None:
    """Progress and chunks, then document and usage."""
    answer = await client.post(URL, json={"text": "one\ntwo"}, headers=LINES)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [next(iter(line)) for line in lines] == ["progress", "chunk", "chunk", "document"]
    assert lines[-1]["usage"]["chunks"] == 2


async def test_a_large_upload_passes_in_small_pieces(app: FastAPI, peers: FakePeers) -> None:
    """The document goes on while it comes in, in pieces of at most a mebibyte."""
    request = RawRequest("POST", URL, MULTIPART)
    task = request.start(app)
    request.say(form(("file", "big.txt", b""), closed=False)[:-2], more=True)
    for _ in range(64):
        request.say(b"x" * 65536, more=True)
    request.say(b"\r\n--" + BOUNDARY.encode() + b"--\r\n")
    await task
    assert request.status == 200
    assert sum(peers.chunker.received) == 64 * 65536
    assert len(peers.chunker.received) >= 4
    assert max(peers.chunker.received) <= 1024 * 1024


@pytest.mark.parametrize("size", [1, 2, 7, 50])
async def test_pieces_may_be_cut_anywhere(app: FastAPI, peers: FakePeers, size: int) -> None:
    """A boundary that is split over packets is still a boundary, and near-boundaries stay content."""
    content = b"a\r\n--x1\r\n--x1y\r\nb--x1x"
    body = form(("max_tokens", "", b"9"), ("file", "a.txt", content))
    request = RawRequest("POST", URL, MULTIPART)
    task = request.start(app)
    for start in range(0, len(body), size):
        request.say(body[start : start + size], more=start + size < len(body))
    await task
    assert request.status == 200
    assert sum(peers.chunker.received) == len(content)
    assert peers.chunker.calls[-1].arguments[0].max_tokens == 9


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (form(("max_tokens", "", b"9")), 422, "UPLOAD_INCOMPLETE"),
        (b"", 422, "UPLOAD_INCOMPLETE"),
        (form(("file", "a.txt", b"abc"), closed=False), 422, "UPLOAD_INCOMPLETE"),
        (b"this is no multipart", 422, "MULTIPART_MALFORMED"),
        (form(("file", "a.txt", b"abc"), ("max_tokens", "", b"9")), 422, "FIELD_AFTER_DOCUMENT"),
        (form(("file", "a.txt", b"abc"), ("file", "b.txt", b"abc")), 422, "INVALID_BODY"),
        (form(("max_tokns", "", b"9"), ("file", "a.txt", b"abc")), 422, "INVALID_BODY"),
        (form(("max_tokens", "", b"nine"), ("file", "a.txt", b"abc")), 422, "INVALID_BODY"),
        (form(("max_tokens", "", b"-9"), ("file", "a.txt", b"abc")), 422, "INVALID_BODY"),
        (form(("chunker", "", b"semantic"), ("file", "a.txt", b"abc")), 422, "INVALID_BODY"),
        (form(("tokenizer", "", b"x" * 5000), ("file", "a.txt", b"abc")), 422, "INVALID_BODY"),
    ],
)
async def test_a_bad_upload_is_typed(client: httpx.AsyncClient, body: bytes, status: int, reason: str) -> None:
    """Each way to be wrong has its own reason."""
    answer = await client.post(URL, content=body, headers=MULTIPART)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)


async def test_a_multipart_body_without_boundary_is_refused(client: httpx.AsyncClient) -> None:
    """Nothing can be read of it."""
    answer = await client.post(URL, content=b"abc", headers={"content-type": "multipart/form-data"})
    assert (answer.status_code, answer.json()["reason"]) == (400, "MULTIPART_MALFORMED")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\\\docs\\\\a.pdf", "a.pdf"),
        ("a\x01b.pdf", "ab.pdf"),
        ("x" * 300, "x" * 255),
    ],
)
async def test_a_files_name_is_only_a_name(client: httpx.AsyncClient, peers: FakePeers, name: str, plain: str) -> None:
    """No folders, no control characters, no endless names."""
    await client.post(URL, content=form(("file", name, b"abc")), headers=MULTIPART)
    assert peers.chunker.calls[-1].arguments[0].filename == plain


@pytest.mark.parametrize(
    ("body", "status"),
    [({"text": ""}, 400), ({"text": "  "}, 400), ({"text": 7}, 422), ({}, 422), ({"text": "a", "chunker": "x"}, 422)],
)
async def test_bad_json_is_typed(client: httpx.AsyncClient, body: dict[str, Any], status: int) -> None:
    """Our own dialect answers with problem+json."""
    answer = await client.post(URL, json=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


async def test_the_workers_refusal_keeps_its_reason(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """Streamed or not, it is a status as long as nothing was sent."""
    peers.chunker.error = InvalidRequest(
        "It is encrypted; remove the password.", reason="DOCUMENT_ENCRYPTED", hop="chunking"
    )
    for headers in ({}, LINES):
        answer = await client.post(URL, json={"text": "a"}, headers=headers)
        problem = answer.json()
        assert (answer.status_code, problem["reason"], problem["hop"]) == (400, "DOCUMENT_ENCRYPTED", "chunking")


async def test_lines_that_break_end_with_an_error(client: httpx.AsyncClient, peers: FakePeers) -> None:
    """No document line follows, so nobody takes it for whole."""

    class Breaking(type(peers.chunker)):  # type: ignore[misc]
        async def chunk(self, *arguments: Any, **keywords: Any) -> Any:
            async for event in super().chunk(*arguments, **keywords):
                if hasattr(event, "usage"):
                    raise Unavailable("The worker went away.", hop="chunking")
                yield event

    peers.chunker.__class__ = Breaking
    answer = await client.post(URL, json={"text": "one"}, headers=LINES)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[-1]["error"]["code"] == "unavailable"
    assert not any("document" in line for line in lines)
    whole = await client.post(URL, json={"text": "one"})
    assert whole.status_code == 503


async def test_a_client_that_leaves_while_uploading_ends_the_work(app: FastAPI, peers: FakePeers) -> None:
    """The worker's call is given up, and nothing is answered to nobody."""
    request = RawRequest("POST", URL, MULTIPART)
    task = request.start(app)
    request.say(form(("file", "big.txt", b"abc"), closed=False), more=True)
    request.leave()
    await task
    assert request.sent == []


async def test_an_upload_over_the_cap_is_413_while_it_comes(peers: FakePeers) -> None:
    """Without a Content-Length the cap holds all the same."""
    settings = GatewaySettings.model_validate({"limits": {"max_upload_bytes": 100_000}})
    request = RawRequest("POST", URL, MULTIPART)
    task = request.start(create_app(settings, peers=peers.as_peers()))
    request.say(form(("file", "big.txt", b"abc"), closed=False), more=True)
    for _ in range(3):
        request.say(b"x" * 50_000, more=True)
    await task
    assert request.status == 413
    assert json.loads(request.body)["code"] == "payload_too_large"


async def test_chunking_can_be_turned_off(peers: FakePeers) -> None:
    """The migration guide's switch does what it says."""
    settings = GatewaySettings.model_validate({"chunking": {"chunkers": {"docling": {"enabled": False}}}})
    app = create_app(settings, peers=peers.as_peers())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as http:
        answer = await http.post(URL, json={"text": "a"})
    assert (answer.status_code, answer.json()["code"]) == (409, "wrong_state")
