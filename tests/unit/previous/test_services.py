"""What the services of before refuse, and what they need not load."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_services.gpu.status import Status
from inference.testing import write_model
from mesh.errors import ModelUnusable
from previous.services.embedding import EmbeddingService
from previous.services.gpu import GPUManager
from previous.services.reranking import RerankingService


class OneReading:
    """GPUs that were read once."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def read(self) -> Status:
        """That reading."""
        return self._status

    def version(self) -> tuple[str, str]:
        """None."""
        return "none", ""

    def close(self) -> None:
        """Nothing is open."""


def test_a_language_model_is_no_reranker_of_before(tmp_path: Path) -> None:
    """Who goes back with one hears that only the mesh can, before anything is loaded."""
    path = write_model(tmp_path / "model", architecture="Qwen3ForCausalLM", model_type="qwen3")
    with pytest.raises(ModelUnusable, match="Name a cross-encoder"):
        RerankingService(str(path))


@pytest.mark.parametrize("service", [EmbeddingService, RerankingService])
def test_a_model_that_is_not_there_is_named(service: type, tmp_path: Path) -> None:
    """Files are found and checked as the workers do it, with the same error."""
    with pytest.raises(ModelUnusable, match="model_name names a directory that does not exist"):
        service(str(tmp_path / "nowhere"))


def test_the_gpus_are_told_as_they_are_read() -> None:
    """The manager adds nothing to the reading and hides nothing of it."""
    status = Status(read_at_unix_ms=1, unavailable_reason="The driver finds no GPU.")
    assert GPUManager(OneReading(status)).get_gpu_status() is status
