"""The footprint's baseline: the API process that a team has before it isolates torch, as small as it can be."""

from __future__ import annotations

import argparse
from typing import Any

from pydantic import BaseModel


class EmbeddingsBody(BaseModel):
    """What the route reads."""

    input: list[str]


def main() -> None:
    """Serve ``/v1/embeddings`` with the model in this very process, until ended."""
    import uvicorn
    from fastapi import FastAPI
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found, unused-ignore]

    parser = argparse.ArgumentParser(prog="python -m bench.monolith", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, help="a model's directory")
    options = parser.parse_args()
    model = SentenceTransformer(options.model, device="cpu")
    app = FastAPI()

    @app.get("/health/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/embeddings", response_model=None)
    def embeddings(body: EmbeddingsBody) -> dict[str, Any]:
        return {"data": [{"embedding": vector.tolist()} for vector in model.encode(body.input)]}

    uvicorn.run(app, host="127.0.0.1", port=options.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
