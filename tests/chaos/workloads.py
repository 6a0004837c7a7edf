"""The requests that each capability is loaded with: written beforehand, small, and such that the worker has to work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.load import post
from bench.texts import Length, random_rankings, random_texts
from ops.local.layout import CHECKOUT

_DOCUMENT = CHECKOUT / "tests/data/documents/python-policy.html"
_QUESTIONS = ("Which port does the gateway use?", "Which port does the LLM worker use?", "Who are you?")
_NOTES = ("A circuit breaker stops calls to a peer that fails.", "The gateway is free of torch.", "Bread is baked.")
_DIFFERENT = 32
_BOUNDARY = "chaos-document"

Write = Callable[[str], Sequence[bytes]]
"""Makes whole HTTP requests for the gateway at a URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How one capability is loaded.

    Attributes:
        hop: the capability's hop at the gateway.
        worker: the process that serves it, by its name in ``ops.local.topology``.
        service: the capability's gRPC service, for health checks.
        write: makes the requests.
        deadline_seconds: what each request gives itself.
        lanes: the concurrencies among which the peak is sought, rising.
        most_rate: requests a second that the generator can send beside what it measures; 0 means as many as it takes.
        goodput: the share of the peak that has to remain under overload.
        variables: set for the worker.
    """

    hop: str
    worker: str
    service: str
    write: Write
    deadline_seconds: float
    lanes: tuple[int, ...]
    most_rate: float = 0.0
    goodput: float = 0.95
    variables: Mapping[str, str] = field(default_factory=dict)

    def requests(self, url: str, **headers: str) -> tuple[bytes, ...]:
        """The requests, each with its deadline and further headers."""
        timeout = str(round(self.deadline_seconds * 1000))
        return tuple(with_headers(each, {"x-request-timeout-ms": timeout, **headers}) for each in self.write(url))


def with_headers(request: bytes, headers: Mapping[str, str]) -> bytes:
    """A whole HTTP request with further headers."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    first, rest = request.split(b"\r\n", 1)
    return first + b"\r\n" + lines.encode("ascii") + rest


def embeddings(texts: int) -> Write:
    """Requests of so many short texts each."""

    def write(url: str) -> Sequence[bytes]:
        chosen = random_texts(_DIFFERENT * texts, Length.SHORT)
        return [
            _json(url, "/v1/embeddings", model="", input=chosen[start : start + texts], encoding_format="base64")
            for start in range(0, len(chosen), texts)
        ]

    return write


def rankings(documents: int) -> Write:
    """Requests of a query and so many passages each."""

    def write(url: str) -> Sequence[bytes]:
        chosen = random_rankings(_DIFFERENT, documents)
        return [_json(url, "/v2/rerank", model="", query=each.query, documents=list(each.documents)) for each in chosen]

    return write


def answers(url: str) -> Sequence[bytes]:
    """Questions that the demo model answers in a few words."""
    return [
        _json(url, "/v1/chat/completions", model="", messages=[{"role": "user", "content": question}], max_tokens=24)
        for question in _QUESTIONS
    ]


def documents(url: str) -> Sequence[bytes]:
    """Uploads of one real page."""
    part = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{_DOCUMENT.name}"\r\n'
        "Content-Type: text/html\r\n\r\n"
    ).encode() + _small(_DOCUMENT)
    body = part + f"\r\n--{_BOUNDARY}--\r\n".encode()
    head = (
        f"POST /v1/chunk HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\n\r\n"
    )
    return [head.encode("ascii") + body]


def notes(url: str) -> Sequence[bytes]:
    """Texts of a few lines to cut."""
    return [_json(url, "/v1/chunk", text=f"# Note\n\n{text}", media_type="text/markdown") for text in _NOTES]


def gpu_states(url: str) -> Sequence[bytes]:
    """The question after the GPUs."""
    return [f"GET /v1/gpu HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n\r\n".encode("ascii")]


def _json(url: str, path: str, **document: Any) -> bytes:
    return post(url, path, document)


def _small(page: Path) -> bytes:
    """The page's first part: HTML needs no end, and a fifth of it is a small document."""
    whole = page.read_bytes()
    return whole[: whole.index(b"</p>", len(whole) // 5) + 4]


EMBEDDING = Workload(
    hop="embedding", worker="embedding", service="embedding.v1.EmbeddingService",
    write=embeddings(32), deadline_seconds=1.5, lanes=(2, 4, 8, 16),
)  # fmt: skip
RERANKING = Workload(
    hop="reranking", worker="reranking", service="reranking.v1.RerankingService",
    write=rankings(16), deadline_seconds=1.5, lanes=(2, 4, 8, 16),
)  # fmt: skip
CHUNKING = Workload(
    hop="chunking", worker="gpu-services", service="chunking.v1.ChunkingService",
    write=documents, deadline_seconds=2.0, lanes=(1, 2, 4, 8),
    # Few enough that a child is replaced before it is measured, too: its successor is part of the warmed state.
    variables={"GPU_SERVICES_DOCUMENTS_PER_CHILD": "40"},
)  # fmt: skip
LLM = Workload(
    hop="llm", worker="llm", service="llm.v1.LlmService",
    write=answers, deadline_seconds=2.0, lanes=(1, 2, 4, 8),
)  # fmt: skip
# Here the gateway is what is full, and each refusal is a request that it reads and answers: a tenth of one served.
GPU = Workload(
    hop="gpu", worker="gpu-services", service="gpu.v1.GpuService",
    write=gpu_states, deadline_seconds=1.0, lanes=(8, 32, 64), most_rate=2000.0, goodput=0.6,
)  # fmt: skip
ALL = (EMBEDDING, RERANKING, CHUNKING, LLM, GPU)
