"""C sources of this package as shared libraries: compiled once on a machine, and kept beside the exported graphs."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_COMPILERS = ("cc", "gcc", "clang")
_ALWAYS = ("-std=gnu11", "-O3", "-shared", "-fPIC")
_COMPILE_SECONDS = 120


class CannotCompile(Exception):
    """There is no compiler, or it refuses the source."""


@dataclass(frozen=True, slots=True)
class CSource:
    """A source file, the files beside it that it includes, and the flags that name the instructions it uses."""

    file: Path
    flags: Sequence[str]
    included: Sequence[Path] = ()

    def library(self, models_dir: Path) -> Path:
        """Where its library is kept: another source or other flags give another file."""
        sources = b"".join(each.read_bytes() for each in (self.file, *self.included))
        digest = hashlib.sha256(" ".join(self.flags).encode() + sources).hexdigest()[:16]
        return models_dir / "native" / f"{self.file.stem}-{digest}.so"

    def obtainable(self, models_dir: Path) -> bool:
        """Whether the library is there or can be tried to be made."""
        return self.library(models_dir).is_file() or _compiler() is not None

    def built(self, models_dir: Path) -> Path:
        """The library, compiled now where it is not there; in one step, so that a half-written one is never loaded.

        Raises:
            CannotCompile: the message says why.
        """
        library = self.library(models_dir)
        if library.is_file() and _only_ours(library):
            return library
        compiler = _compiler()
        if compiler is None:
            raise CannotCompile(f"No C compiler is installed ({', '.join(_COMPILERS)}).")
        library.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not _only_ours(library.parent):
            raise CannotCompile(f"Others may write to {library.parent}, and could exchange what is loaded from there.")
        handle, name = tempfile.mkstemp(dir=library.parent, prefix=library.stem)
        os.close(handle)
        draft = Path(name)
        command = [compiler, *_ALWAYS, *self.flags, str(self.file), "-o", str(draft), "-lm"]
        try:
            subprocess.run(  # noqa: S603 - the compiler of this machine, on a source of this package
                command, check=True, capture_output=True, timeout=_COMPILE_SECONDS
            )
            draft.chmod(0o755)
            draft.replace(library)
        except subprocess.CalledProcessError as error:
            reason = error.stderr.decode(errors="replace").strip()[-500:]
            raise CannotCompile(f"{compiler} refuses {self.file.name}: {reason}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CannotCompile(f"{compiler} did not compile {self.file.name}: {type(error).__name__}.") from error
        finally:
            draft.unlink(missing_ok=True)
        return library


def _only_ours(path: Path) -> bool:
    """Whether nobody but this user and root may change it: what is loaded from there runs in this process."""
    facts = path.lstat()
    others_write = facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return facts.st_uid in {0, os.geteuid()} and not others_write and not stat.S_ISLNK(facts.st_mode)


def _compiler() -> str | None:
    return next((found for name in _COMPILERS if (found := shutil.which(name))), None)
