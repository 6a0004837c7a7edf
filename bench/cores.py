"""Cores apart for an engine that computes on the processor, as an engine on a GPU takes none from those who carry its
tokens. Otherwise both wait for each other's turns, and what is measured is the scheduler.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cores:
    """Who computes where. Empty where the system has a single core or cannot hold processes to some."""

    engine: tuple[int, ...] = ()
    rest: tuple[int, ...] = ()

    @classmethod
    def halves(cls) -> Cores:
        """One half of this process's cores for the engine, the other for all else."""
        if not hasattr(os, "sched_getaffinity") or shutil.which("taskset") is None:
            return cls()
        cores = sorted(os.sched_getaffinity(0))
        half = len(cores) // 2
        return cls(tuple(cores[:half]), tuple(cores[half:])) if half else cls()

    def engine_python(self, python: Path, directory: Path) -> Path:
        """What starts ``python`` on the engine's cores, vLLM's threads included; a file in ``directory``."""
        if not self.engine:
            return python
        numbers = ",".join(map(str, self.engine))
        wrapper = directory / "python"
        wrapper.write_text(
            "#!/bin/sh\n"
            f'VLLM_CPU_OMP_THREADS_BIND={numbers} exec taskset -c {numbers} {shlex.quote(str(python))} "$@"\n'
        )
        wrapper.chmod(0o700)
        return wrapper

    @contextmanager
    def held_to_the_rest(self) -> Iterator[None]:
        """Hold this thread, and what it starts, to the cores that are not the engine's."""
        if not self.rest:
            yield
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.rest)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)
