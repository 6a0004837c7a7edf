"""The folder in which engines' verdicts are kept."""

from __future__ import annotations

import fcntl
import logging
from pathlib import Path

import pytest

from inference.engines.folder import alone, keep

READ_ONLY = Path("/sys/mesh")
"""Where not even root can make a folder."""


def test_one_process_at_a_time_measures(tmp_path: Path) -> None:
    """While one holds the folder, another does not get its lock; afterwards it does."""
    with alone(tmp_path), (tmp_path / "engines.lock").open("w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (tmp_path / "engines.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_is_kept_is_whole_and_alone_in_its_folder(tmp_path: Path) -> None:
    """A verdict replaces the one before, and no draft stays behind."""
    for text in ("first", "second"):
        keep(tmp_path / "engines" / "verdict.json", text)
    assert [file.read_text() for file in (tmp_path / "engines").iterdir()] == ["second"]


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="no file system here that is for reading alone")
def test_a_folder_for_reading_alone_stops_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    """Workers that share a prepared volume read-only go on without a lock, and say that nothing is kept."""
    with alone(READ_ONLY), caplog.at_level(logging.WARNING):
        keep(READ_ONLY / "engines" / "verdict.json", "{}")
    assert "for reading alone" in caplog.text
    assert not READ_ONLY.exists()


def test_another_failure_is_not_taken_for_it(tmp_path: Path) -> None:
    """A file in the folder's place is a mistake to be told, not a folder for reading alone."""
    (tmp_path / "models").write_text("")
    with pytest.raises(FileExistsError), alone(tmp_path / "models"):
        raise AssertionError("entered without a folder")
