"""What the gateway loads, and how fast it is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LOOK = """
import json, sys
before = set(sys.modules)
import gateway.__main__
from gateway.app import create_app
from gateway.settings import GatewaySettings
create_app(GatewaySettings()).openapi
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The top-level packages that a gateway has loaded once it is composed."""
    result = subprocess.run([sys.executable, "-c", LOOK], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout))


def test_nothing_heavy_is_loaded(loaded: set[str]) -> None:
    """Torch and its relatives never; numpy, tokenisers and HTTP clients not before a route needs them."""
    heavy = {"torch", "transformers", "sentence_transformers", "onnxruntime", "numpy", "tiktoken", "tokenizers",
             "docling", "docling_core", "requests", "httpx", "huggingface_hub", "redis"}  # fmt: skip
    assert not loaded & heavy


def test_what_it_is_made_of_is_loaded(loaded: set[str]) -> None:
    """The look above does see what is loaded."""
    assert {"fastapi", "grpc", "uvicorn", "mesh"} <= loaded
