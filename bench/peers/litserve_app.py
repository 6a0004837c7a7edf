"""all-MiniLM behind LitServe, as its documentation does it, with requests batched.

Runs in the peer's environment, so it imports nothing of the mesh. LitServe reads the annotation of ``request`` while it
runs, so annotations are not postponed here.

    python bench/peers/litserve_app.py --model DIR --port 8001
"""

import argparse
from typing import Any

import litserve


class Embedding(litserve.LitAPI):
    """Lists of texts in, lists of vectors out."""

    def __init__(self, model: str) -> None:
        super().__init__(max_batch_size=32, batch_timeout=0.005, api_path="/embed")
        self._path = model

    def setup(self, device: str) -> None:
        """Load the model."""
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(self._path, device=device)

    def decode_request(self, request: dict[str, Any]) -> list[str]:
        """The texts of one request."""
        texts: list[str] = request["texts"]
        return texts

    def batch(self, inputs: list[list[str]]) -> list[list[str]]:
        """Requests as they come: they have different numbers of texts."""
        return inputs

    def predict(self, inputs: list[list[str]]) -> list[Any]:
        """One call of the model for the texts of all requests."""
        texts = [text for request in inputs for text in request]
        vectors = iter(self._model.encode(texts, batch_size=32, normalize_embeddings=True))
        return [[next(vectors) for _ in request] for request in inputs]

    def unbatch(self, output: list[Any]) -> list[Any]:
        """The vectors of each request."""
        return output

    def encode_response(self, output: list[Any]) -> dict[str, Any]:
        """The answer of one request."""
        return {"vectors": [vector.tolist() for vector in output]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    server = litserve.LitServer(Embedding(options.model), accelerator="cpu")
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="warning")
