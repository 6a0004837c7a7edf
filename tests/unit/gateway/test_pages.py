"""The API's document and the pages for people."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.admission import ALWAYS

CHECKOUT = Path(__file__).parents[3]
_LAYERS = ("admission", "hosts", "middleware", "watching")


async def test_every_route_is_documented_with_an_example(client: httpx.AsyncClient) -> None:
    """Each operation says what it does, and how its answer looks where it is JSON."""
    document = (await client.get("/openapi.json")).json()
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert {"POST /v1/embeddings", "POST /v1/chat/completions", "POST /v2/rerank", "POST /v1/rerank", "POST /embed",
            "POST /rerank", "POST /v1/chunk", "GET /v1/gpu", "GET /v1/gpu/stream", "GET /status", "GET /metrics",
            "GET /status/stream",
            "GET /v1/models", "GET /v1/models/{id}", "GET /health/live", "GET /health/ready",
            "POST /v1/completions", "POST /v1/messages", "POST /v1/messages/count_tokens", "GET /info",
            "GET /health"} == set(operations)  # fmt: skip
    for name, operation in operations.items():
        content = operation["responses"]["200"]["content"]
        if name.startswith("POST"):
            assert operation["requestBody"]["content"]["application/json"]["examples"]
            assert content["application/json"]["example"]


async def test_references_in_the_document_lead_somewhere(client: httpx.AsyncClient) -> None:
    """A broken $ref breaks every generated client."""
    answer = await client.get("/openapi.json")
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', answer.text))
    assert names
    assert names <= set(answer.json()["components"]["schemas"])


async def test_every_example_works(client: httpx.AsyncClient) -> None:
    """What the page offers to try is answered."""
    document = (await client.get("/openapi.json")).json()
    tried = 0
    for path, methods in document["paths"].items():
        for operation in (methods[method] for method in methods if method == "post"):
            body: dict[str, Any] = operation["requestBody"]["content"]["application/json"]
            for example in body["examples"].values():
                answer = await client.post(path, json=example["value"])
                assert answer.status_code == 200, (path, answer.text)
                tried += 1
    assert tried >= 10


@pytest.mark.parametrize("path", ["/", "/try", "/docs"])
async def test_pages_load_nothing_from_elsewhere(client: httpx.AsyncClient, path: str) -> None:
    """They work without a network, and everything they name is there."""
    page = await client.get(path)
    assert page.status_code == 200
    assert "//" not in page.text.replace("<!doctype html>", "")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for asset in re.findall(r'(?:src|href)="(/pages/[^"]+)"', page.text):
        answer = await client.get(asset)
        assert answer.status_code == 200, asset
        for imported in re.findall(r'from "\./([^"]+)"', answer.text):
            assert (await client.get(f"/pages/{imported}")).status_code == 200, imported


async def test_what_the_status_page_needs_is_served_while_the_gateway_is_full(client: httpx.AsyncClient) -> None:
    """An overload is when somebody looks."""
    page = await client.get("/")
    assets = set(re.findall(r'(?:src|href)="(/pages/[^"]+)"', page.text))
    scripts = [(await client.get(asset)).text for asset in assets if asset.endswith(".js")]
    assets |= {f"/pages/{name}" for text in scripts for name in re.findall(r'from "\./([^"]+)"', text)}
    assert {"/", "/status/stream", *assets} <= ALWAYS
    assert len(assets) >= 4


async def test_only_pages_are_served_as_pages(client: httpx.AsyncClient) -> None:
    """No file but the pages' own can be read."""
    for name in ("docs.html", "../settings.py", "..%2Fsettings.py", "nothing"):
        assert (await client.get(f"/pages/{name}")).status_code == 404


def test_every_reason_of_the_gateways_own_layers_has_its_meaning_on_the_status_page() -> None:
    """What an operator sees refused is explained there, keys and hosts too; and no word is for what does not exist."""
    pages = files("gateway") / "pages"
    table = (pages / "status-parts.js").read_text().partition("export const MEANING = {")[2].partition("};")[0]
    explained = set(re.findall(r"^  ([a-z_]+): ", table, re.MULTILINE))
    layers = [*(CHECKOUT / "gateway/keys").glob("*.py"), *(CHECKOUT / f"gateway/{name}.py" for name in _LAYERS)]
    raised = {reason.lower() for path in layers for reason in re.findall(r'reason="([A-Z_]+)"', path.read_text())}
    assert {"role_needed", "host_not_allowed", "gateway_limit"} <= raised
    assert raised - {"client_closed"} <= explained
    sources = (
        path for top in ("gateway", "mesh", "inference", "llm_service") for path in (CHECKOUT / top).rglob("*.py")
    )
    everywhere = "".join(path.read_text() for path in sources)
    unknown = {word for word in explained if not re.search(rf'"({word}|{word.upper()})"', everywhere)}
    assert not unknown
