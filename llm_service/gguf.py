"""A GGUF file on this machine: chosen within its folder, and looked at by the library that will serve it."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_service.models import DEMO
from mesh.errors import ModelUnusable
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

LOOK_SECONDS = 120.0
_SHARD = re.compile(r"-(\d{5})-of-\d{5}$")
_MOST_NAMES = 20

# Runs in the engine's environment. What reads the file is what will serve it, in a process that may die of it.
_LOOK = """
import ctypes, json, sys
import llama_cpp, llama_cpp.server.app
from llama_cpp.server.settings import Settings
print(json.dumps({"version": llama_cpp.__version__, "variables": [*Settings.model_fields, "config_file"]}), flush=True)
options = llama_cpp.llama_model_default_params()
options.vocab_only = True
llama_cpp.llama_backend_init()
model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), options)
if not model:
    sys.exit(1)
words = llama_cpp.llama_model_get_vocab(model)


def fact(name):
    written = ctypes.create_string_buffer(256)
    return written.value if llama_cpp.llama_model_meta_val_str(model, name, written, len(written)) >= 0 else b""


print(json.dumps({
    "context_tokens": int(fact(fact(b"general.architecture") + b".context_length") or 0),
    "has_chat_template": llama_cpp.llama_model_chat_template(model, None) is not None,
    "longest_token": max(
        len(llama_cpp.llama_vocab_get_text(words, number)) for number in range(llama_cpp.llama_vocab_n_tokens(words))
    ),
}))
"""


@dataclass(frozen=True)
class GgufModel:
    """A model that llama.cpp can be started on. Made by ``find``.

    Attributes:
        path: its file, the first one of a model in several.
        name: what callers call it unless the settings say otherwise.
        context_tokens: longest prompt and answer that it was trained for.
        has_chat_template: whether it can answer chats, and not only continue prompts.
        longest_token: no token stands for more bytes than this.
        version: of llama-cpp-python.
        variables: names of environment variables, in lower case, that its server would take for settings.
    """

    path: Path
    name: str
    context_tokens: int
    has_chat_template: bool
    longest_token: int
    version: str
    variables: frozenset[str]

    @classmethod
    async def find(cls, wanted: str, *, folder: Path, python: str) -> GgufModel:
        """The model ``wanted`` of ``folder``, by the library in the environment of ``python``. Raises ModelUnusable."""
        path = await asyncio.to_thread(choose, folder, wanted)
        library, seen = await _look(path, python)
        if not seen:
            raise ModelUnusable(
                f"{path.name} cannot be loaded: it is cut off, no GGUF model, or of a kind that llama.cpp "
                f"{library['version']} does not know. Fetch it again, or install a newer llama-cpp-python.",
                reason="MODEL_DAMAGED",
            )
        variables = frozenset(str(name).lower() for name in library["variables"])
        return cls(path, name_of(path), version=str(library["version"]), variables=variables, **seen)


def choose(folder: Path, wanted: str) -> Path:
    """The file that ``wanted`` names below ``folder``; where it is the default, the only one there. Blocks.

    Args:
        folder: ``LOCAL_MODELS_PATH``.
        wanted: a path from the folder, or a file's name anywhere below it, each with or without ``.gguf``.

    Raises:
        ModelUnusable: reason MODEL_NOT_FOUND; the message says what to do.
    """
    if not folder.is_dir():
        raise _not_found("LOCAL_MODELS_PATH is no folder; set it to the one that holds your GGUF files.")
    root = folder.resolve()
    models = sorted(path for path in root.rglob("*.gguf") if _is_model(path))
    names = {str(path.relative_to(root)): path for path in models}
    if wanted == DEMO:
        if len(models) == 1:
            return _within(root, models[0])
        raise _not_found(
            f"LOCAL_MODELS_PATH holds several models; set LLM_MODEL to one of them: {_listed(names)}."
            if models
            else "LOCAL_MODELS_PATH holds no GGUF file; put one there, or set it to the folder that does."
        )
    direct = root / Path(wanted).expanduser()
    for path in (direct, direct.with_name(direct.name + ".gguf")):
        if path.is_file():
            return _within(root, path)
    called = [path for path in models if wanted in (path.name, path.stem, name_of(path))]
    if len(called) == 1:
        return _within(root, called[0])
    if called:
        raise _not_found(f"Several models have that name; set LLM_MODEL to one of {_listed(names)}.")
    _within(root, direct)
    raise _not_found(f"LOCAL_MODELS_PATH holds no such model. Set LLM_MODEL to one of: {_listed(names)}.")


def name_of(path: Path) -> str:
    """The file's name, less what numbers the parts of a model in several files.

    >>> name_of(Path("big-Q4_K_M-00001-of-00003.gguf"))
    'big-Q4_K_M'
    """
    return _SHARD.sub("", path.stem)


def _is_model(path: Path) -> bool:
    """Whether a model begins in this file: not a later part of one, and not what lets another model see."""
    shard = _SHARD.search(path.stem)
    return path.is_file() and "mmproj" not in path.stem.lower() and (shard is None or int(shard[1]) == 1)


def _within(root: Path, path: Path) -> Path:
    resolved = path.resolve()
    if not resolved.is_relative_to(root):
        raise _not_found(
            "LLM_MODEL leads out of LOCAL_MODELS_PATH; move the file there, or set LOCAL_MODELS_PATH to its folder."
        )
    return resolved


def _listed(names: dict[str, Path]) -> str:
    return ", ".join([*names][:_MOST_NAMES]) or "it is empty"


async def _look(path: Path, python: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the library says of itself, and of the file; nothing of the file where it cannot load it."""
    try:
        process = await asyncio.create_subprocess_exec(
            python, "-I", "-c", _LOOK, str(path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError:
        raise _not_installed() from None
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            output, words = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        log.warning("the model's file cannot be loaded", extra=fields(words=words.decode(errors="replace")[-1000:]))
    said = [json.loads(line) for line in output.decode(errors="replace").splitlines() if line.startswith("{")]
    if not said:
        raise _not_installed()
    return said[0], said[1] if len(said) > 1 and not process.returncode else {}


def _not_installed() -> ModelUnusable:
    return ModelUnusable(
        "The engine's environment holds no llama-cpp-python with its server. Set LLM_ENGINE_PYTHON to the Python of an "
        "environment in which llama-cpp-python[server] is installed; the start script makes one for "
        "LLM_ENGINE=llamacpp.",
        reason="ENGINE_NOT_INSTALLED",
    )


def _not_found(message: str) -> ModelUnusable:
    return ModelUnusable(message, reason="MODEL_NOT_FOUND")
