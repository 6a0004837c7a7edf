"""The worker's settings, and which PDF pipeline they end in."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_services.chunking.artifacts import choose_pdf_pipeline, layout_model_present
from gpu_services.settings import GpuServicesSettings
from mesh.errors import ModelUnusable
from mesh.settings import SettingsError


def test_a_misspelt_setting_names_the_right_one() -> None:
    """A limit that is silently ignored is found in production."""
    with pytest.raises(SettingsError, match="GPU_SERVICES_MAX_PAGES"):
        GpuServicesSettings.load({"GPU_SERVICES_MAX_PAGE": "10"})


def test_limits_reach_the_service() -> None:
    """What is set is what a document gets."""
    config = GpuServicesSettings.load({}, max_pages=7, children=3, max_document_seconds=9.5).chunking()
    assert (config.limits.max_pages, config.limits.max_seconds, config.pool.children) == (7, 9.5, 3)


def test_without_the_layout_model_auto_is_native_and_layout_is_refused(tmp_path: Path) -> None:
    """An operator who asks for what is not there is told what to do."""
    assert choose_pdf_pipeline("auto", str(tmp_path)) == "native"
    assert choose_pdf_pipeline("native", "") == "native"
    with pytest.raises(ModelUnusable, match="GPU_SERVICES_PDF_PIPELINE=native"):
        choose_pdf_pipeline("layout", str(tmp_path))


def test_the_layout_model_is_present_only_with_its_weights(tmp_path: Path) -> None:
    """An empty folder of a broken download is no model."""
    folder = tmp_path / "docling-project--docling-layout-heron"
    folder.mkdir()
    assert not layout_model_present(str(tmp_path))
    (folder / "model.safetensors").write_bytes(b"")
    assert layout_model_present(str(tmp_path))
