"""The preparing command: what a start script sees when a model cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.prepare import main
from inference.testing import write_model


@pytest.mark.parametrize("purpose", ["embedding", "reranking", "late-interaction", "cross-encoder", "generative"])
def test_a_missing_model_is_named(purpose: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and one line with the reason's name, whatever it is prepared for."""
    code = main(["--for", purpose, "--model", str(tmp_path / "absent"), "--models-dir", str(tmp_path)])
    assert code == 1
    assert "MODEL_NOT_FOUND: " in capsys.readouterr().out


def test_the_purpose_decides_the_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A classifier is no embedding model, and an encoder no cross-encoder."""
    encoder = write_model(tmp_path / "encoder")
    classifier = write_model(tmp_path / "classifier", architecture="BertForSequenceClassification", num_labels=1)
    for purpose, path in (("embedding", classifier), ("cross-encoder", encoder), ("late-interaction", classifier)):
        assert main(["--for", purpose, "--model", str(path), "--models-dir", str(tmp_path)]) == 1
        assert "MODEL_WRONG_KIND: " in capsys.readouterr().out


def test_an_unknown_engine_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """The engines that exist are listed."""
    with pytest.raises(SystemExit):
        main(["--engine", "abacus"])
    assert "onnxruntime" in capsys.readouterr().err
