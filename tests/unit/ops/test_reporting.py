from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from ops.local.checks import CLOSING_LINE, needing_workers
from ops.local.console import Console, render_table
from ops.local.health import find_problems, render
from ops.local.layout import Layout
from ops.local.models import preparations
from ops.local.record import Record, write_atomically
from ops.local.status import HopState, MeshState, describe_service, hop_state
from ops.local.supervisor import ProcessState
from ops.local.waiting import READY, Readiness, describe

SERVING = HopState("embedding", ("127.0.0.1:50051",), serving=True, health="SERVING", breaker="closed", probe_ms=1.25)
LOADING = HopState("llm", ("127.0.0.1:50054",), health="NOT_SERVING", breaker="closed", reason="Loading.")
HOPELESS = HopState("llm", health="NOT_SERVING", breaker="closed", reason="The model is damaged.", hopeless=True)
DOWN = HopState("gpu", ("127.0.0.1:50053",), health="UNREACHABLE", breaker="closed", reason="refused")
TRIPPED = HopState("reranking", ("a:1",), health="SERVING", breaker="open", reason="five failures")


def hop(health: str, **changes: Any) -> dict[str, Any]:
    """A hop as the gateway's /status writes it."""
    endpoint = {"endpoint": "127.0.0.1:50051", "health": health, "reason": "", "reason_code": ""}
    endpoint |= {key: changes.pop(key) for key in ("reason", "reason_code") if key in changes}
    document: dict[str, Any] = {"name": "embedding", "serving": health == "SERVING", "endpoints": [endpoint]}
    return document | {"breaker": {"state": "closed"}, "info_ms": 2.5, "serves": {}} | changes


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    """A table can be read, and no line ends in blanks."""
    assert render_table(["A", "LONGER"], [["wide cell", "x"]]) == ["A          LONGER", "wide cell  x"]


def test_without_a_terminal_a_step_is_two_plain_lines() -> None:
    """Logs of a build get no control characters."""
    stream = io.StringIO()
    with Console(stream).step("installing") as step:
        step.tick("detail")
    first, last = stream.getvalue().splitlines()
    assert first == "  installing …"
    assert last.startswith("  installing: done (")


def test_an_interrupted_step_is_not_called_done() -> None:
    """What was cut off says so."""
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Console(stream).step("installing"):
        raise KeyboardInterrupt
    assert "installing: stopped" in stream.getvalue()


def test_a_serving_hop_needs_no_reason() -> None:
    """Health, breaker, the probe's latency and the model come from /status."""
    model = {"name": "m", "engine": "torch", "precision": "bfloat16"}
    state = hop_state(hop("SERVING", serves={"models": [model]}))
    assert (state.serving, state.health, state.breaker, state.probe_ms) == (True, "SERVING", "closed", 2.5)
    assert (state.model, state.reason) == ("m (torch bfloat16)", "")


@pytest.mark.parametrize(
    ("health", "code", "hopeless"),
    [
        ("NOT_SERVING", "UNAVAILABLE", False),
        ("NOT_SERVING", "", False),
        ("NOT_SERVING", "STARTING", False),
        ("NOT_SERVING", "NOT_SERVING", False),
        ("NOT_SERVING", "ENGINE_RESTARTING", False),
        ("NOT_SERVING", "MODEL_TRUNCATED", True),
        ("UNREACHABLE", "UNAVAILABLE", False),
    ],
)
def test_waiting_ends_only_where_it_is_in_vain(health: str, code: str, hopeless: bool) -> None:
    """A worker that loads or is not there yet may still come; a model that it refused will not mend itself."""
    assert hop_state(hop(health, reason="why", reason_code=code)).hopeless is hopeless


@pytest.mark.parametrize(
    ("serves", "words"),
    [
        ({}, ""),
        ({"models": [{"name": "demo"}], "engine": "transformers"}, "demo (transformers)"),
        ({"chunkers": [{"name": "hybrid"}], "pdf_pipeline": "native"}, "hybrid (PDF: native)"),
        ({"source": "nvml"}, "nvml"),
        ({"source": "none"}, "no GPU on this machine"),
    ],
)
def test_every_worker_is_described_in_a_few_words(serves: dict[str, Any], words: str) -> None:
    """The table's last column is filled from what each kind of worker tells of itself."""
    assert describe_service(serves) == words


def test_nothing_is_wrong_where_all_serve() -> None:
    """Exit code 0 rests on this."""
    assert find_problems(MeshState(ready=True, hops=(SERVING,)), logs=Path("logs")) == []


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (LOADING, ["llm", "Loading", "Wait"]),
        (HOPELESS, ["llm", "The model is damaged", "start the mesh anew", "logs/llm.log"]),
        (DOWN, ["gpu", "nothing answers at 127.0.0.1:50053", "logs/gpu-services.log"]),
        (TRIPPED, ["reranking", "circuit breaker is open"]),
    ],
)
def test_each_problem_says_what_to_do(broken: HopState, expected: list[str]) -> None:
    """The hop, what is wrong with it, and where to look or what to change."""
    (problem,) = find_problems(MeshState(ready=True, hops=(SERVING, broken)), logs=Path("logs"))
    assert all(part in problem for part in expected)


def test_a_gateway_that_is_down_is_the_one_problem() -> None:
    """Its hops are unknown, so nothing is said of them."""
    state = MeshState(ready=False, error="http://x does not answer: refused")
    (problem,) = find_problems(state, logs=Path("logs"))
    assert "start_torch_isolation.sh" in problem
    assert render("http://x", state, [problem])[1].split()[:3] == ["gateway", "http://x", "UNREACHABLE"]


def test_the_table_has_a_row_for_the_gateway_and_for_every_hop() -> None:
    """One row a hop: endpoint, health, breaker, latency and model."""
    lines = render("http://x", MeshState(ready=True, hops=(SERVING, DOWN), latency_ms=3.0), [])
    assert [line.split()[0] for line in lines] == ["HOP", "gateway", "embedding", "gpu"]
    assert lines[2].split() == ["embedding", "127.0.0.1:50051", "SERVING", "closed", "1.2", "ms", "-"]


def readiness(*hops: HopState, gateway: bool = True, states: dict[str, str] | None = None) -> Readiness:
    """A moment of a start, with the supervisor's word on each process."""
    processes = {name: ProcessState(name, state, 1) for name, state in (states or {}).items()}
    return Readiness(gateway=gateway, hops=hops, processes=processes, seconds=1.0)


def test_a_start_waits_for_what_may_still_come() -> None:
    """All serving or all settled ends the wait; a worker that loads does not."""
    assert readiness(SERVING).settled
    assert readiness(SERVING, HOPELESS).settled
    assert not readiness(SERVING, LOADING).settled
    assert not readiness(SERVING, gateway=False).settled
    assert not readiness().settled


def test_a_start_is_usable_where_one_capability_serves() -> None:
    """One broken model does not make a start fail; a mesh that serves nothing does."""
    assert readiness(SERVING, HOPELESS).usable
    assert not readiness(HOPELESS).usable
    assert not readiness(SERVING, gateway=False).usable


def test_a_process_that_ends_at_its_start_is_told() -> None:
    """A port or a setting that is wrong shows at once, not as an endless wait."""
    supervised = {"embedding": "RUNNING", "gateway": "RUNNING", "gpu-services": "BACKOFF"}
    states = describe(readiness(SERVING, DOWN, states=supervised))
    assert states["embedding"] == states["gateway"] == READY
    assert "ended at its start" in states["gpu"]
    assert "ended at its start" in states["chunking"]


def test_a_start_does_not_wait_for_wrong_settings_to_mend_themselves() -> None:
    """A process that ends with the code for wrong settings is given up, and its state points to its log."""

    def with_wrong(process: str, *, gateway: bool = True) -> Readiness:
        processes = {process: ProcessState(process, "BACKOFF", 0, exit_status=78)}
        return Readiness(gateway=gateway, hops=(SERVING, DOWN), processes=processes, seconds=1.0)

    assert with_wrong("gpu-services").settled
    assert not with_wrong("llm").settled
    assert with_wrong("gateway", gateway=False).settled
    assert "settings are wrong" in describe(with_wrong("gpu-services"))["gpu"]


def test_the_demo_model_is_trained_only_where_it_is_used() -> None:
    """Another model, or another engine, needs no training."""
    layout = Layout.from_environment({"MESH_HOME": "/srv/mesh"}, Path("/srv/checkout"))

    def processes(**environ: str) -> list[str]:
        return [each.process for each in preparations(layout, environ)]

    assert processes() == ["embedding", "reranking", "llm"]
    assert "llm" not in processes(LLM_MODEL="owner/model")
    assert "llm" not in processes(LLM_ENGINE="openai")


def test_a_chosen_model_is_the_one_that_is_prepared() -> None:
    """Variables given at the start reach the preparation; the reranker's method is the worker's to choose."""
    layout = Layout.from_environment({}, Path("/srv/checkout"))
    embedding, reranking, _ = preparations(layout, {"EMBEDDING_MODEL": "/models/e", "RERANKING_MODEL": "owner/r"})
    assert embedding.arguments[-2:] == ("--model", "/models/e")
    assert reranking.arguments[2:4] == ("--for", "reranking")
    _, pinned, _ = preparations(layout, {"RERANKING_METHOD": "late-interaction"})
    assert pinned.arguments[2:4] == ("--for", "late-interaction")


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """What cannot be read counts as no record."""
    record = Record(run_id="ab", mode="local", gateway_url="http://127.0.0.1:8000", ports=(8000, 50051))
    record.write(tmp_path / "mesh.json")
    assert Record.read(tmp_path / "mesh.json") == record
    (tmp_path / "mesh.json").write_text('{"run_id": ')
    assert Record.read(tmp_path / "mesh.json") is None
    assert Record.read(tmp_path / "none.json") is None


def test_two_who_write_one_file_at_a_time_both_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two starts that share their folder of models do not take each other's half-written file."""
    path = tmp_path / "stamp"
    write_to_disk = os.fsync

    def another_comes_first(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", write_to_disk)
        write_atomically(path, "theirs")
        write_to_disk(descriptor)

    monkeypatch.setattr(os, "fsync", another_comes_first)
    write_atomically(path, "ours")
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs the new content, not the old one, and no half of it stays behind."""
    path = tmp_path / "stamp"
    write_atomically(path, "old")

    def is_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", is_full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "line", ["29 passed in 121.61s (0:02:01)", "===== 2 failed, 35 passed, 2 deselected in 1.63s ====="]
)
def test_pytests_last_line_is_known(line: str) -> None:
    """The checks end with it, quiet or not."""
    assert CLOSING_LINE.match(line)


def test_files_for_the_workers_environment_are_found_by_their_mark(tmp_path: Path) -> None:
    """Only they run there: the others may import what that environment does not have."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_torch.py").write_text("pytestmark = pytest.mark.workers_" + "env\n")
    (tmp_path / "tests" / "test_other.py").write_text("import cohere\n")
    assert needing_workers(tmp_path) == ["tests/test_torch.py"]
