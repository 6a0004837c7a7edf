"""Ask about a document: chunked, searched and answered by a running mesh, with the ``openai`` SDK alone.

    pip install openai
    python examples/ask_document.py tests/data/documents/shared-mime-info-spec.pdf "Which desktops use the database?"

PDF, DOCX, PPTX, XLSX, HTML, Markdown and plain text. Another mesh is named by ``OPENAI_BASE_URL``, whose default here
is ``http://127.0.0.1:8000/v1``, another language model than the default one by ``--model``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from openai import OpenAI

PASSAGES = 4
CHUNK_TOKENS = 200
"""Short enough for four of them, a question and its answer in the context of a small model."""
BATCH = 128
INSTRUCTIONS = "Answer from these passages alone, and say so where they hold no answer.\n\n"


def chunk(client: OpenAI, path: Path) -> list[dict[str, Any]]:
    """The document's chunks. The SDK knows no such route, and sends it like any other."""
    answer = client.post(
        "/chunk",
        cast_to=object,
        body={"max_tokens": str(CHUNK_TOKENS)},
        files=[("file", (path.name, path.read_bytes()))],
        options={"headers": {"Content-Type": "multipart/form-data"}},
    )
    chunks: list[dict[str, Any]] = answer["chunks"]  # type: ignore[index] # the SDK's word for "any JSON" is object
    return chunks


def embed(client: OpenAI, texts: list[str], input_type: str) -> list[list[float]]:
    """A vector of length 1 for each text. Models that read questions otherwise than passages are told which it is."""
    vectors: list[list[float]] = []
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        answer = client.embeddings.create(model="", input=batch, extra_body={"input_type": input_type})
        vectors += [item.embedding for item in answer.data]
    return vectors


def nearest(client: OpenAI, chunks: list[dict[str, Any]], question: str) -> list[dict[str, Any]]:
    """The chunks that are nearest to the question in meaning, in their order in the document."""
    passages = embed(client, [each["contextualized_text"] for each in chunks], "document")
    (asked,) = embed(client, [question], "query")
    likeness = [sum(map(float.__mul__, passage, asked)) for passage in passages]
    best = sorted(range(len(chunks)), key=likeness.__getitem__, reverse=True)[:PASSAGES]
    return [chunks[position] for position in sorted(best)]


def main() -> None:
    """Answer one question on the terminal, while it is being written, and then name the passages."""
    parser = argparse.ArgumentParser(description="Ask a running mesh about a document.")
    parser.add_argument("document", type=Path)
    parser.add_argument("question")
    parser.add_argument("--model", default="", help="a language model that the mesh serves; its default one otherwise")
    arguments = parser.parse_args()
    with OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    ) as client:
        passages = nearest(client, chunk(client, arguments.document), arguments.question)
        stream = client.chat.completions.create(
            model=arguments.model,
            messages=[
                {"role": "system", "content": INSTRUCTIONS + "\n\n".join(each["text"] for each in passages)},
                {"role": "user", "content": arguments.question},
            ],
            temperature=0,
            stream=True,
        )
        for piece in stream:
            for choice in piece.choices:
                print(choice.delta.content or "", end="", flush=True)
    print("\n\nFrom:")
    for each in passages:
        pages = ", ".join(map(str, each["pages"]))
        print(f"- {' › '.join(each['headings']) or 'the document'}" + (f" (page {pages})" if pages else ""))


if __name__ == "__main__":
    main()
