"""From a PDF to an answer, through containers alone."""

from __future__ import annotations

import httpx
import pytest

from ops.local.layout import CHECKOUT

pytestmark = [pytest.mark.containers, pytest.mark.slow]

PDF = CHECKOUT / "tests/data/documents/shared-mime-info-spec.pdf"
# What the passages found must hold, and the answer that the demo model has learnt.
QUESTION = "Which command must an application run after it installs a file in the MIME packages directory?"
IN_A_PASSAGE = "update-mime-database"
ANSWER = "It must run update-mime-database."


def test_from_a_pdf_to_an_answer(http: httpx.Client) -> None:
    """A PDF is chunked, its chunks embedded and searched, the best reranked, and a language model asked about one."""
    with PDF.open("rb") as file:
        chunked = http.post("/v1/chunk", files={"file": file}, data={"max_tokens": "128"})
    assert chunked.status_code == 200, chunked.text
    chunks = [chunk["text"] for chunk in chunked.json()["chunks"]]
    assert len(chunks) > 50

    embedded = http.post("/v1/embeddings", json={"input": [QUESTION, *chunks]})
    assert embedded.status_code == 200, embedded.text
    question, *vectors = [each["embedding"] for each in embedded.json()["data"]]
    scores = [sum(a * b for a, b in zip(question, vector, strict=True)) for vector in vectors]
    nearest = sorted(range(len(chunks)), key=scores.__getitem__, reverse=True)[:10]
    assert any(IN_A_PASSAGE in chunks[each] for each in nearest), "the search found nothing of the answer"

    ranked = http.post(
        "/v2/rerank", json={"model": "", "query": QUESTION, "documents": [chunks[each] for each in nearest]}
    )
    assert ranked.status_code == 200, ranked.text
    results = ranked.json()["results"]
    assert sorted(each["index"] for each in results) == list(range(10))
    assert [each["relevance_score"] for each in results] == sorted(
        (each["relevance_score"] for each in results), reverse=True
    )

    asked = {"role": "user", "content": QUESTION}
    answered = http.post("/v1/chat/completions", json={"messages": [asked], "temperature": 0})
    assert answered.status_code == 200, answered.text
    assert answered.json()["choices"][0]["message"]["content"] == ANSWER


def test_gpus_are_told_or_why_there_are_none(http: httpx.Client) -> None:
    """The container says which GPUs it sees; without any it says why."""
    told = http.get("/v1/gpu")
    assert told.status_code == 200
    assert told.json()["devices"] or told.json()["unavailable_reason"]
