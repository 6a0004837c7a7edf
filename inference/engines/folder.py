"""The folder that workers share what they measured in: locked while one measures, and maybe for reading alone.

In containers it is a volume that was filled before, and that the workers cannot write to.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

from mesh.telemetry import get_logger

log = get_logger(__name__)

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def alone(models_dir: Path) -> Iterator[None]:
    """One process at a time: two measuring side by side would slow each other down and choose wrongly.

    Where the folder is for reading alone, nobody waits: what is measured there is not kept either.
    """
    with _lock_file(models_dir) as lock:
        if lock is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _lock_file(models_dir: Path) -> AbstractContextManager[TextIO | None]:
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        return (models_dir / "engines.lock").open("w")
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        return nullcontext()


def keep(file: Path, text: str) -> None:
    """Write ``file`` in one step; where the folder is for reading alone, say so and go on without."""
    draft = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        log.warning("the choice of engine cannot be kept: the models' folder is for reading alone")
