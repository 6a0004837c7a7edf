"""A secret and a prompt that must turn up nowhere: sent through every dialect of the real mesh, then looked for."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest

from ops.local.testing import LocalMesh

pytestmark = pytest.mark.integration

SECRET = f"canary-secret-{uuid.uuid4().hex}"
PROMPT = f"canaryprompt{uuid.uuid4().hex}"
_HEADERS = {"authorization": f"Bearer {SECRET}", "x-api-key": SECRET, "cookie": f"session={SECRET}"}
_MESSAGES = [{"role": "user", "content": PROMPT}]
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": [PROMPT, PROMPT * 2]},
    "/v1/chat/completions": {"messages": _MESSAGES, "max_tokens": 4},
    "/v1/completions": {"prompt": PROMPT, "max_tokens": 4},
    "/v1/messages": {"model": "", "messages": _MESSAGES, "max_tokens": 4, "system": PROMPT},
    "/v1/messages/count_tokens": {"model": "", "messages": _MESSAGES},
    "/v2/rerank": {"query": PROMPT, "documents": [PROMPT]},
    "/v1/rerank": {"query": PROMPT, "documents": [PROMPT]},
    "/embed": {"inputs": [PROMPT]},
    "/rerank": {"query": PROMPT, "texts": [PROMPT]},
    "/v1/chunk": {"text": f"# {PROMPT}\n\n{PROMPT}", "media_type": "text/markdown"},
}
# What is wrong with each, so that the ways of failing are gone too.
WRONG: tuple[dict[str, Any], ...] = (
    {"max_tokens": PROMPT, "dimensions": PROMPT, "top_n": PROMPT},
    {"temperature": 99999, "encoding_format": PROMPT, "truncation_direction": PROMPT},
    {"input": {PROMPT: PROMPT}, "messages": PROMPT, "documents": PROMPT, "inputs": 7, "text": 7, "texts": 7},
    {"input": PROMPT * 5000, "prompt": PROMPT * 5000, "query": PROMPT * 5000},
)


@pytest.fixture(scope="module")
def answers(http: httpx.Client) -> list[httpx.Response]:
    """All answers: to what is right, what is wrong, and what is no request at all."""
    got: list[httpx.Response] = []
    models = http.get("/v1/models").raise_for_status().json()["data"]
    for path, body in REQUESTS.items():
        for change in ({}, {"stream": True}, *WRONG):
            bodies = [{**body, **change}]
            if "model" in body:  # has to be named, and which one serves is the mesh's affair
                bodies = [{**each, "model": model["id"]} for each in bodies for model in models]
            told: dict[str, Any] = {"headers": _HEADERS, "params": {"key": SECRET, "q": PROMPT}}
            got += [http.post(path, json=each, **told) for each in bodies]
        got.append(http.post(path, content=PROMPT.encode(), headers={**_HEADERS, "content-type": "application/json"}))
        got.append(http.get(path, headers=_HEADERS, params={"key": SECRET}))
    words = PROMPT.encode()
    for name, content in (("a.pdf", b"%PDF-1.7 " + words), ("a.docx", words), ("a.md", words)):
        got.append(http.post("/v1/chunk", files={"file": (name, content)}, headers=_HEADERS))
    return got


def test_every_dialect_was_asked(answers: list[httpx.Response]) -> None:
    """Each path has answered well at least once, and each has refused."""
    for path in REQUESTS:
        statuses = {answer.status_code for answer in answers if answer.request.url.path == path}
        assert 200 in statuses, (path, statuses)
        assert any(400 <= status < 500 for status in statuses), (path, statuses)
        assert not any(status >= 500 for status in statuses), (path, statuses)


def test_no_log_metric_or_status_holds_them(mesh: LocalMesh, http: httpx.Client, answers: list[httpx.Response]) -> None:
    """Of any process: neither the secret nor the prompt, nor a part of the prompt."""
    places = {f"log of {name}": mesh.log(name) for name in mesh.processes()}
    for path in ("/metrics", "/status", "/v1/models", "/info"):
        places[path] = http.get(path).text
    for variable, port in mesh.environ.items():
        if variable.endswith("_METRICS_PORT") and port != "0":
            places[variable] = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    assert len(places) >= 10
    assert all(places.values())
    assert [name for name, text in places.items() if SECRET in text or PROMPT in text or PROMPT[6:30] in text] == []


def test_no_refusal_repeats_them(answers: list[httpx.Response]) -> None:
    """An error's text ends up in other people's logs."""
    refusals = [answer for answer in answers if answer.status_code >= 400]
    assert refusals
    assert [each.request.url.path for each in refusals if SECRET in each.text or PROMPT in each.text] == []
    assert not any(SECRET in str(answer.headers) or PROMPT in str(answer.headers) for answer in answers)
