"""Where the mesh's state lies on this machine."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

# sun_path holds 108 bytes on Linux and 104 on macOS, the final zero included.
_LONGEST_SOCKET_PATH = 100


@dataclass(frozen=True)
class Layout:
    """Directories and files of one mesh. Two meshes on one machine differ in ``home`` and may share the rest."""

    checkout: Path
    home: Path
    envs: Path
    models: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], checkout: Path = CHECKOUT) -> Layout:
        """Read ``MESH_HOME`` (default ``var`` in the checkout), ``MESH_ENVS`` and ``MESH_MODELS`` (default in it)."""
        home = (checkout / environ.get("MESH_HOME", "var")).resolve()
        return cls(
            checkout=checkout,
            home=home,
            envs=(checkout / environ.get("MESH_ENVS", str(home / "envs"))).resolve(),
            models=(checkout / environ.get("MESH_MODELS", str(home / "models"))).resolve(),
        )

    @property
    def run(self) -> Path:
        """What exists only while a mesh runs: its record, lock, socket and generated configuration."""
        return self.home / "run"

    @property
    def logs(self) -> Path:
        """One log file per process."""
        return self.home / "logs"

    @property
    def install_log(self) -> Path:
        """Everything that pip and the model preparation said."""
        return self.logs / "install.log"

    @property
    def record(self) -> Path:
        """The running mesh's `ops.local.record.Record`."""
        return self.run / "mesh.json"

    @property
    def lock(self) -> Path:
        """Held while a start or a stop is at work."""
        return self.run / "lock"

    @property
    def supervisor_config(self) -> Path:
        """The generated supervisord configuration."""
        return self.run / "supervisord.conf"

    @property
    def supervisor_socket(self) -> Path:
        """Where supervisord takes commands; in the temporary directory where the usual path is too long for that."""
        socket = self.run / "supervisor.sock"
        if len(os.fsencode(socket)) <= _LONGEST_SOCKET_PATH:
            return socket
        name = hashlib.sha256(os.fsencode(socket)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"mesh-{name}.sock"

    @property
    def supervisor_output(self) -> Path:
        """What supervisord says before it has a log."""
        return self.run / "supervisord.out"

    @property
    def transient(self) -> tuple[Path, ...]:
        """What exists only while the mesh runs."""
        pid = self.run / "supervisord.pid"
        return self.record, self.supervisor_socket, self.supervisor_config, self.supervisor_output, pid

    def python(self, environment: str) -> Path:
        """The interpreter of an environment."""
        return self.envs / environment / "bin" / "python"

    def log_of(self, process: str) -> Path:
        """The log file of a process."""
        return self.logs / f"{process}.log"
