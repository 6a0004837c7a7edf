"""Every engine on the GPU is as faithful as on the CPU, and the one that is chosen keeps the promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.texts import Length, random_texts
from inference.card import ModelKind
from inference.engines.choice import AUTO, ENGINES, EnginePlan
from inference.loading import LoadedModel, load
from inference.models import ModelRequest
from inference.padding import pad
from inference.pooling import normalized
from inference.tokenizing import Truncation
from mesh.errors import ModelUnusable
from ops.local.layout import Layout
from tests.chaos.bars import Measured

pytestmark = [
    pytest.mark.workers_env,
    pytest.mark.gpu,
    pytest.mark.slow,
    # Third parties' own: exporting by tracing is announced as legacy, and transformers' masks are traced.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

# bfloat16 has 8 bits of mantissa, float16 has 11.
LEAST = {"torch": 0.99999, "torch-fp16": 0.9999, "torch-bf16": 0.999, AUTO: 0.999}
OTHERS = 0.999


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Short and long texts."""
    return [*random_texts(256, Length.SHORT), *random_texts(128, Length.LONG)]


@pytest.fixture(scope="module")
def reference(texts: list[str], default_model: Path, device: str) -> np.ndarray:
    """float32 vectors by sentence-transformers on the CPU."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(default_model), device="cpu")
    return np.asarray(model.encode(texts, batch_size=32, normalize_embeddings=True))


@pytest.mark.parametrize("engine", [AUTO, *ENGINES])
def test_vectors_on_the_gpu_as_in_float32(  # noqa: PLR0917 - fixtures
    engine: str,
    texts: list[str],
    reference: np.ndarray,
    default_model: Path,
    layout: Layout,
    device: str,
    measured: Measured,
) -> None:
    """The least cosine to float32, over short and long texts, is what the precision allows."""
    loaded = _loaded(default_model, layout, engine, device)
    try:
        vectors = _vectors(loaded, texts)
    finally:
        loaded.engine.close()
    least = float((vectors * reference).sum(axis=1).min())
    name = f"{engine}: {loaded.verdict.engine} on {loaded.engine.traits.device}"
    measured(f"{name}: least cosine", least, "")
    measured(f"{name}: speed on the check texts", loaded.verdict.texts_per_second, "texts/s")
    assert least >= LEAST.get(engine, OTHERS)


def _loaded(path: Path, layout: Layout, engine: str, device: str) -> LoadedModel:
    request = ModelRequest(name=str(path), kind=ModelKind.EMBEDDING)
    try:
        loaded = load(request, EnginePlan(models_dir=layout.models, engine=engine, device=device))
    except ModelUnusable as error:
        if engine == AUTO:
            raise
        pytest.skip(error.message)
    if engine != AUTO and loaded.engine.traits.device != device:
        loaded.engine.close()
        pytest.skip(f"{engine} runs on the {loaded.engine.traits.device} alone here")
    return loaded


def _vectors(loaded: LoadedModel, texts: list[str]) -> np.ndarray:
    inputs = loaded.tokenizer.singles(texts, Truncation.END).inputs
    parts = [loaded.engine.run(pad(inputs[start : start + 64])) for start in range(0, len(inputs), 64)]
    return normalized(np.concatenate(parts))
