"""Models that ``scripts/onnx_export.py`` exported, as a worker finds them beside the originals.

``models/onnx/<model>/export.json`` says which weights a graph was made from and what its files' hashes are. What does
not fit, or is not whole, is refused with its reason, and the original is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.engines import Head
from mesh.telemetry import fields, get_logger

if TYPE_CHECKING:
    from inference.models import ResolvedModel

log = get_logger(__name__)

FORMAT = 1
MANIFEST = "export.json"
FLOAT32, INT8 = "float32", "int8"
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedGraph:
    """One graph.

    Attributes:
        file: its name in the export's folder.
        sha256: of the file.
        size_bytes: of the file.
        worst, mean: to the float32 reference on the check texts: smallest and mean cosine of an encoder, largest and
            mean difference of a classifier's scores.
        texts_per_second: on the machine of the export.
        left_alone: how many of its matrix products stayed float32 where others were quantised.
    """

    file: str
    sha256: str
    size_bytes: int
    worst: float
    mean: float
    texts_per_second: float
    left_alone: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One model's graphs, by precision.

    Attributes:
        model: its name, for messages.
        weights_sha256: of the weights that they were made from.
        kind: ``encoder`` (token states for any pooling) or ``classifier``.
    """

    model: str
    weights_sha256: str
    kind: str
    graphs: Mapping[str, ExportedGraph]
    folder: Path = field(default_factory=Path)

    @property
    def digest(self) -> str:
        """Tells two exports apart: what was measured with one does not hold for another."""
        hashes = sorted(f"{precision}={graph.sha256}" for precision, graph in self.graphs.items())
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:12]

    def graph(self, precision: str) -> Path | None:
        """The graph's file; None where there is none in this precision."""
        found = self.graphs.get(precision)
        return self.folder / found.file if found is not None else None

    def write(self) -> None:
        """Write the manifest, which makes the folder an export."""
        stated: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        del stated["folder"]
        (self.folder / MANIFEST).write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, manifest: Path) -> Export:
        """Read a manifest. Raises OSError, ValueError, TypeError or LookupError where it is none."""
        stated = json.loads(manifest.read_text(encoding="utf-8"))
        if stated.pop("format") != FORMAT:
            raise ValueError("another format")
        graphs = {precision: ExportedGraph(**graph) for precision, graph in stated.pop("graphs").items()}
        return cls(**stated, graphs=graphs, folder=manifest.parent)


def kind_of(head: Head) -> str:
    """What kind of graph serves a head."""
    return "classifier" if head is Head.LOGITS else "encoder"


def folder_name(model: str) -> str:
    """The folder of a model's export, below the output."""
    return model.strip("/").replace("/", "--")


def find(folder: Path | None, model: ResolvedModel, head: Head, report: Callable[[str], None]) -> Export | None:
    """The whole export of exactly these weights; None where there is none. Blocks: reads its files once.

    Args:
        folder: what ``--output`` was; None finds nothing.
        model: the original.
        head: what it is wanted for.
        report: told of an export that seems to be this model's and is refused.
    """
    for manifest in sorted(folder.glob(f"*/{MANIFEST}")) if folder is not None else ():
        try:
            export = Export.read(manifest)
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            _refuse(manifest, model, f"its {MANIFEST} cannot be read", report)
            continue
        if export.kind != kind_of(head):
            continue
        if export.weights_sha256 != model.sha256:
            if _short(export.model) == _short(model.name):
                _refuse(manifest, model, "it was made from other weights", report)
            continue
        damaged = next((graph.file for graph in export.graphs.values() if not _is_whole(export.folder, graph)), None)
        if damaged is not None:
            _refuse(manifest, model, f"{damaged} is not the file that was written", report)
            continue
        return export
    return None


def sha256_of(file: Path) -> str:
    """Hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _is_whole(folder: Path, graph: ExportedGraph) -> bool:
    # A name with a folder in it could point anywhere.
    if Path(graph.file).name != graph.file:
        return False
    try:
        return sha256_of(folder / graph.file) == graph.sha256
    except OSError:
        return False


def _refuse(manifest: Path, model: ResolvedModel, why: str, report: Callable[[str], None]) -> None:
    log.warning("export refused", extra=fields(model=model.name, export=str(manifest.parent), why=why))
    report(
        f"{model.name}: the export in {manifest.parent} is refused: {why}. The original is used; export it again with "
        "scripts/onnx_export.py, or remove the folder."
    )


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]
