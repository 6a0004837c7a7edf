"""A GGUF file is found within its folder, or it is said what to do; a library of the engine's own looks at it."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_service.gguf import GgufModel, choose
from mesh.errors import ModelUnusable

LIBRARY = {"version": "0.3.36", "variables": ["model", "HOST"]}
SEEN = {"context_tokens": 4096, "has_chat_template": True, "longest_token": 32}

PythonThat = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models, one of them in two files, one deeper; and what is none."""
    folder = tmp_path / "models"
    (folder / "deep").mkdir(parents=True)
    for name in ("small-Q4_0", "deep/big-00001-of-00002", "deep/big-00002-of-00002", "mmproj-small"):
        (folder / f"{name}.gguf").touch()
    (folder / "notes.txt").touch()
    (tmp_path / "outside.gguf").touch()
    return folder


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("small-Q4_0.gguf", "small-Q4_0.gguf"),
        ("small-Q4_0", "small-Q4_0.gguf"),
        ("deep/big-00001-of-00002.gguf", "deep/big-00001-of-00002.gguf"),
        ("big", "deep/big-00001-of-00002.gguf"),
        ("deep/../small-Q4_0", "small-Q4_0.gguf"),
    ],
)
def test_a_model_is_named_by_its_path_or_its_name(folder: Path, wanted: str, found: str) -> None:
    """From the folder, with or without the ending."""
    assert choose(folder, wanted) == (folder / found).resolve()
    assert choose(folder, str(folder / found)) == (folder / found).resolve()


def test_the_only_model_need_not_be_named(folder: Path) -> None:
    """Later parts and what lets another model see are no models."""
    (folder / "small-Q4_0.gguf").unlink()
    assert choose(folder, "demo").name == "big-00001-of-00002.gguf"


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("demo", "set LLM_MODEL to one of them: deep/big-00001-of-00002.gguf, small-Q4_0.gguf"),
        ("nope", "Set LLM_MODEL to one of: deep/big-00001-of-00002.gguf, small-Q4_0.gguf"),
        ("../outside", "leads out of LOCAL_MODELS_PATH"),
        ("../outside.gguf", "leads out of LOCAL_MODELS_PATH"),
        ("/etc/passwd", "leads out of LOCAL_MODELS_PATH"),
        ("../nothing-there", "leads out of LOCAL_MODELS_PATH"),
    ],
)
def test_what_cannot_be_chosen_says_what_to_do(folder: Path, wanted: str, told: str) -> None:
    """With the names that there are, and nothing about what lies outside."""
    with pytest.raises(ModelUnusable) as caught:
        choose(folder, wanted)
    assert told in caught.value.message
    assert caught.value.reason == "MODEL_NOT_FOUND"


def test_a_link_does_not_lead_out(folder: Path) -> None:
    """Neither by name nor as the only one there."""
    link = folder / "linked.gguf"
    link.symlink_to(folder.parent / "outside.gguf")
    for other in folder.rglob("*.gguf"):
        if other != link:
            other.unlink()
    for wanted in ("linked", "demo"):
        with pytest.raises(ModelUnusable, match="leads out"):
            choose(folder, wanted)


def test_one_name_in_two_places_has_to_be_told_apart(folder: Path) -> None:
    """Nothing is picked at random."""
    for place in ("a", "b"):
        (folder / place).mkdir()
        (folder / place / "same.gguf").touch()
    with pytest.raises(ModelUnusable, match=r"a/same\.gguf, b/same\.gguf"):
        choose(folder, "same")
    assert choose(folder, "b/same").parent.name == "b"


def test_an_empty_folder_and_none_say_so(tmp_path: Path) -> None:
    """Each names the variable."""
    for folder, told in ((tmp_path, "holds no GGUF file"), (tmp_path / "none", "is no folder")):
        with pytest.raises(ModelUnusable, match="LOCAL_MODELS_PATH") as caught:
            choose(folder, "demo")
        assert told in caught.value.message


@pytest.fixture
def python_that(tmp_path: Path) -> PythonThat:
    """Makes the Python of an environment whose library says these lines and ends with this code."""

    def make(*said: object, code: int = 0) -> str:
        path = tmp_path / "python"
        lines = "".join(f"echo '{json.dumps(line)}'\n" for line in said)
        path.write_text(f"#!/bin/sh\necho a warning\n{lines}exit {code}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


async def test_the_file_is_described_by_the_library(folder: Path, python_that: PythonThat) -> None:
    """Its context, its template, and the variables that its server would take for settings."""
    model = await GgufModel.find("big", folder=folder, python=python_that(LIBRARY, SEEN))
    assert (model.name, model.context_tokens, model.has_chat_template, model.version) == ("big", 4096, True, "0.3.36")
    assert model.variables == {"model", "host"}


@pytest.mark.parametrize("code", [1, 139])
async def test_a_broken_file_is_told_from_a_missing_library(folder: Path, python_that: PythonThat, code: int) -> None:
    """Whether the library refuses the file or dies of it."""
    with pytest.raises(ModelUnusable, match=r"small-Q4_0\.gguf cannot be loaded") as caught:
        await GgufModel.find("small-Q4_0", folder=folder, python=python_that(LIBRARY, code=code))
    assert caught.value.reason == "MODEL_DAMAGED"


async def test_an_environment_without_the_library_is_told_by_what_to_do(folder: Path, python_that: PythonThat) -> None:
    """Also where there is no such Python at all."""
    for python in (python_that(code=1), str(folder / "no-python")):
        with pytest.raises(ModelUnusable, match="LLM_ENGINE_PYTHON") as caught:
            await GgufModel.find("small-Q4_0", folder=folder, python=python)
        assert caught.value.reason == "ENGINE_NOT_INSTALLED"
