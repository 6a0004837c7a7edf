"""The peers: what each needs, how it is started, how it is asked, how its answers are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.processes import Program, free_port
from bench.ways import read_vectors
from ops.local.environments import TORCH, Environment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_APPS = Path(__file__).parent
# None of them may ask a hub or tell its makers anything while it is measured.
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
_READY_WITHIN_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a peer is started with.

    Attributes:
        environment: its directory; programs are in ``bin``.
        model: the model's directory.
        scratch: a directory for files that it needs made; it goes away when the peer has ended.
        port: where it listens.
    """

    environment: Path
    model: Path
    scratch: Path
    port: int

    def program(self, name: str) -> Path:
        """One of the programs in its environment."""
        return self.environment / "bin" / name


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another server.

    Attributes:
        name: with its engine, for the table.
        requirements: of its environment, beside torch.
        environment_name: of its directory, and of its constraints ``peer-*.txt``; two peers may share one.
        command: starts it.
        path: answers requests for embeddings.
        body: the JSON of a request for these texts.
        vectors: reads an answer.
        prepare: a command to run first, for instance an export; none by default.
        variables: of its environment, beside those that keep it quiet.
        ready_path: answers 200 once it serves.
    """

    name: str
    environment_name: str
    requirements: tuple[str, ...]
    command: Callable[[Setting], Sequence[str | Path]]
    path: str
    body: Callable[[Sequence[str]], Mapping[str, Any]]
    vectors: Callable[[bytes], NDArray[np.float32]]
    prepare: Callable[[Setting], Sequence[str | Path]] | None = None
    variables: Callable[[Setting], Mapping[str, str]] = field(default=lambda _: {})
    ready_path: str = "/health"

    @property
    def environment(self) -> Environment:
        """What to install."""
        return Environment(
            self.environment_name, f"peer-{self.environment_name}", packages=self.requirements, first=(TORCH,)
        )

    def setting(self, *, environments: Path, model: Path, scratch: Path) -> Setting:
        """One start of it, on a free port."""
        return Setting(environment=environments / self.environment_name, model=model, scratch=scratch, port=free_port())

    def started(self, setting: Setting) -> Program:
        """It, with this setting."""
        return Program(
            name=self.name, command=self.command(setting), port=setting.port, ready_path=self.ready_path,
            variables=self.quiet(setting), ready_within_seconds=_READY_WITHIN_SECONDS,
        )  # fmt: skip

    def quiet(self, setting: Setting) -> dict[str, str]:
        """The variables of its processes: no hub, no telemetry, caches in the scratch directory."""
        return {**_QUIET, "HF_HOME": str(setting.scratch / "hf"), **self.variables(setting)}


def _openai(texts: Sequence[str]) -> Mapping[str, Any]:
    return {"model": "peer", "input": list(texts), "encoding_format": "base64"}


def _plain(texts: Sequence[str]) -> Mapping[str, Any]:
    return {"texts": list(texts)}


def _rows(key: str | None) -> Callable[[bytes], NDArray[np.float32]]:
    def read(answer: bytes) -> NDArray[np.float32]:
        import numpy as np

        document = json.loads(answer)
        return np.array(document[key] if key else document, dtype=np.float32)

    return read


def _infinity(setting: Setting, engine: str, model: Path | str, *more: str) -> list[str | Path]:
    return [
        setting.program("infinity_emb"), "v2", "--model-id", str(model), "--served-model-name", "peer",
        "--engine", engine, "--device", "cpu", "--host", "127.0.0.1", "--port", str(setting.port),
        # It would time its own batches at every start; what is measured here is warmed by the benchmark.
        "--no-model-warmup", "--no-bettertransformer", *more,
    ]  # fmt: skip


def _export(setting: Setting) -> list[str | Path]:
    # Optimum's own fusions (O2). infinity would do that at its start, in a way that newer versions of optimum refuse.
    return [
        setting.program("optimum-cli"), "export", "onnx", "--model", setting.model, "--library-name", "transformers",
        "--task", "feature-extraction", "--optimize", "O2", setting.scratch / "onnx",
    ]  # fmt: skip


_INFINITY = ("infinity-emb[torch,optimum,server]",)

PEERS = (
    Peer(
        name="infinity (torch)", environment_name="infinity", requirements=_INFINITY,
        command=lambda setting: _infinity(setting, "torch", setting.model),
        path="/embeddings", body=_openai, vectors=read_vectors,
    ),
    Peer(
        name="infinity (onnx)", environment_name="infinity", requirements=_INFINITY, prepare=_export,
        # It finds an ONNX file in the working directory alone, not by a path.
        command=lambda setting: [
            "env", "-C", setting.scratch / "onnx",
            *_infinity(setting, "optimum", ".", "--onnx-disable-optimize", "--pooling-method", "mean"),
        ],
        path="/embeddings", body=_openai, vectors=read_vectors,
    ),
    Peer(
        name="LitServe", environment_name="litserve", requirements=("litserve", "sentence-transformers"),
        command=lambda setting: [
            setting.program("python"), _APPS / "litserve_app.py", "--model", setting.model, "--port", str(setting.port),
        ],
        path="/embed", body=_plain, vectors=_rows("vectors"),
    ),
    Peer(
        name="BentoML", environment_name="bentoml", requirements=("bentoml", "sentence-transformers"),
        command=lambda setting: [
            setting.program("bentoml"), "serve", "bentoml_app:Embedding", "--working-dir", _APPS,
            "--host", "127.0.0.1", "--port", str(setting.port),
        ],
        variables=lambda setting: {"PEER_MODEL": str(setting.model), "BENTOML_HOME": str(setting.scratch / "bentoml")},
        path="/embed", body=_plain, vectors=_rows(None), ready_path="/readyz",
    ),
)  # fmt: skip
"""Whom the mesh is compared with."""
