"""Libraries compiled on this machine: made once, in one step, and never needed where there is no compiler."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest

from inference.engines.compiled import CannotCompile, CSource

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler is installed"
)


@pytest.fixture
def source(tmp_path: Path) -> CSource:
    """A source that compiles."""
    file = tmp_path / "answer.c"
    file.write_text("int answer(void) { return ANSWER; }\n", encoding="utf-8")
    return CSource(file, ("-DANSWER=42",))


@needs_compiler
def test_a_library_is_compiled_once_and_then_needs_no_compiler(
    source: CSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time the file is there; beside it lies nothing half-written."""
    library = source.built(tmp_path / "models")
    assert ctypes.CDLL(str(library)).answer() == 42
    assert list(library.parent.iterdir()) == [library]
    written = library.stat().st_mtime_ns
    monkeypatch.setenv("PATH", "")
    assert source.obtainable(tmp_path / "models")
    assert source.built(tmp_path / "models") == library
    assert library.stat().st_mtime_ns == written


@needs_compiler
def test_another_source_or_other_flags_are_another_library(source: CSource, tmp_path: Path) -> None:
    """A library of an older version is never taken for the newer one's."""
    first = source.library(tmp_path)
    assert CSource(source.file, ("-DANSWER=7",)).library(tmp_path) != first
    source.file.write_text("int answer(void) { return 1; }\n", encoding="utf-8")
    assert source.library(tmp_path) != first


@needs_compiler
def test_a_source_that_the_compiler_refuses_says_why(source: CSource, tmp_path: Path) -> None:
    """The compiler's own words, and no file that could be taken for a library."""
    source.file.write_text("#error no such machine\n", encoding="utf-8")
    with pytest.raises(CannotCompile, match="no such machine"):
        source.built(tmp_path / "models")
    assert list((tmp_path / "models" / "native").iterdir()) == []


def test_without_a_compiler_the_library_is_not_obtainable(
    source: CSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not offered, and asking for it all the same names what is missing."""
    monkeypatch.setenv("PATH", "")
    assert not source.obtainable(tmp_path / "models")
    with pytest.raises(CannotCompile, match="gcc"):
        source.built(tmp_path / "models")


@needs_compiler
def test_a_library_that_others_may_write_is_not_loaded(source: CSource, tmp_path: Path) -> None:
    """It would run in this process: it is compiled again, and where others own the folder it is not loaded at all."""
    library = source.built(tmp_path)
    library.chmod(0o777)
    library.write_bytes(b"exchanged")
    assert ctypes.CDLL(str(source.built(tmp_path))).answer() == 42
    library.unlink()
    library.parent.chmod(0o777)
    with pytest.raises(CannotCompile, match="may write"):
        source.built(tmp_path)
