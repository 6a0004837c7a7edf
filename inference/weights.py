"""Weights on disk: safetensors only, whole, and with a hash."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from mesh.errors import ModelUnusable

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_LARGEST_HEADER = 100 * 1024 * 1024


def weight_files(path: Path, *, name: str) -> tuple[Path, ...]:
    """The safetensors files of the model in ``path``, in a fixed order.

    Raises:
        ModelUnusable: there are none, only pickled ones, or a shard is missing.
    """
    if (path / _SINGLE).is_file():
        return (path / _SINGLE,)
    if (path / _INDEX).is_file():
        return _shards(path, name)
    if any(next(path.glob(pattern), None) for pattern in _PICKLED):
        raise ModelUnusable(
            f"{name} has pickled weights only, and those can run code when loaded. "
            "Convert them to model.safetensors, or choose a model that is published so.",
            reason="MODEL_PICKLED",
        )
    raise ModelUnusable(
        f"{name} has no {_SINGLE}. Fetch the model again, or correct the path.", reason="MODEL_NOT_FOUND"
    )


def verified_hash(path: Path, *, name: str) -> str:
    """The sha256 over all weight files, after checking that each is whole.

    Raises:
        ModelUnusable: as ``weight_files``, or a file is truncated or is not safetensors.
    """
    files = weight_files(path, name=name)
    for file in files:
        _require_whole(file, name)
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _shards(path: Path, name: str) -> tuple[Path, ...]:
    try:
        mapping = json.loads((path / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({str(shard) for shard in mapping.values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelUnusable(
            f"{name}: {_INDEX} cannot be read. Fetch the model again.", reason="MODEL_DAMAGED"
        ) from error
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelUnusable(f"{name}: {_INDEX} names a file outside the model.", reason="MODEL_DAMAGED")
        if not (path / shard).is_file():
            raise ModelUnusable(f"{name}: the shard {shard} is missing. Fetch the model again.", reason="MODEL_DAMAGED")
    return tuple(path / shard for shard in shards)


def _header(file: Path, name: str) -> dict[str, tuple[int, int]]:
    """Tensor name → byte range in the data that follows the header."""
    with file.open("rb") as stream:
        prefix = stream.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= size <= _LARGEST_HEADER:
            raise _not_safetensors(file, name)
        raw = stream.read(size)
    try:
        header = json.loads(raw)
        return {
            key: (8 + size + int(value["data_offsets"][0]), 8 + size + int(value["data_offsets"][1]))
            for key, value in header.items()
            if key != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _not_safetensors(file, name) from error


def _require_whole(file: Path, name: str) -> None:
    ranges = _header(file, name)
    expected = max((end for _, end in ranges.values()), default=0)
    size = file.stat().st_size
    if not ranges or size != expected:
        raise ModelUnusable(
            f"{name}: {file.name} is {size} bytes long and its header promises {expected}: "
            "the download was cut short. Fetch the model again.",
            reason="MODEL_TRUNCATED",
        )


def _not_safetensors(file: Path, name: str) -> ModelUnusable:
    return ModelUnusable(
        f"{name}: {file.name} is truncated or is not a safetensors file. Fetch the model again.",
        reason="MODEL_DAMAGED",
    )
