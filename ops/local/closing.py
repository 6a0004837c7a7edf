"""The last words of a start: what runs, how to choose otherwise, where the logs are, and what to try."""

from __future__ import annotations

from ops.local.console import render_table
from ops.local.layout import Layout
from ops.local.topology import WORKERS, Topology
from ops.local.waiting import Readiness
from ops.tls.names import CLIENT

_CHOICES = (
    ("EMBEDDING_MODEL", "a sentence-transformers model"),
    ("RERANKING_MODEL", "a cross-encoder"),
    ("LLM_MODEL", "any Hugging Face model that generates text"),
)


def closing_words(readiness: Readiness, topology: Topology, layout: Layout) -> list[str]:
    """What a start says at its end."""
    title = "The mesh is up" if readiness.complete else "The mesh is up, but not all of it serves"
    rows = [
        [hop.name, hop.model or "-", "serving" if hop.serving else f"NOT SERVING: {hop.reason}"]
        for hop in readiness.hops
    ]
    return [
        "",
        f"{title} ({readiness.seconds:.1f} s): {topology.gateway_url}",
        *(f"  {line}" for line in render_table(["CAPABILITY", "MODEL", "STATE"], rows)),
        *(
            f"  {name} is served elsewhere, at {url}; nothing was started for it here."
            for name, url in topology.elsewhere.items()
        ),
        "",
        "To choose other models, stop the mesh and start it with these variables (a path, or a name on the hub):",
        *(f"  {variable}=…  {what}" for variable, what in _CHOICES),
        *_security(topology),
        f"Logs: {layout.logs}/<process>.log ({', '.join(topology.names)})",
        "",
        "Try:",
        *_commands(topology),
        "",
        "Health: ./scripts/check_torch_isolation_health.sh    Stop: ./scripts/stop_torch_isolation.sh",
    ]


def _security(topology: Topology) -> list[str]:
    if topology.certificates is None:
        return []
    return [f"Mutual TLS on every hop, by development certificates in {topology.certificates.folder}"]


def _commands(topology: Topology) -> list[str]:
    url = topology.gateway_url
    json = "-H 'content-type: application/json'"
    embedding = next((each for each in topology.listeners if each.process == WORKERS[0].name), None)
    lines = [
        f'  curl -s {url}/v1/embeddings {json} -d \'{{"input": "hello"}}\'',
        f"  curl -s {url}/v2/rerank {json} \\\n"
        '    -d \'{"query": "capital of France", "documents": ["Berlin", "Paris is in France"]}\'',
        f"  curl -s {url}/v1/chunk -F file=@tests/data/documents/shared-mime-info-spec.pdf",
        f"  curl -s {url}/v1/chat/completions {json} \\\n"
        '    -d \'{"messages": [{"role": "user", "content": "What is the Torch Isolation Mesh?"}], "temperature": 0}\'',
    ]
    if embedding and (files := topology.certificates) is not None:
        lines.append(
            f"  grpcurl -cacert {files.ca} -cert {files.certificate(CLIENT)} -key {files.key(CLIENT)} \\\n"
            "    -import-path protos -proto protos/embedding/v1/embedding.proto \\\n"
            f"    {embedding.host}:{embedding.port} embedding.v1.EmbeddingService/Info"
        )
    elif embedding:
        lines.append(f"  grpcurl -plaintext {embedding.host}:{embedding.port} list")
    return [*lines, f"  In a browser: {url}/ (the mesh as it is), {url}/try (forms), {url}/docs (every route)"]
