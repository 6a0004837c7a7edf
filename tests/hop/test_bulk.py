"""``python -m mesh.bulk`` against a real worker over gRPC; the worker's engine is a fake, all else is real."""

# ruff: noqa: ASYNC240 - nobody else needs a test's event loop while it reads a small file

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prometheus_client import REGISTRY

from embedding_service.embedder import Embedder
from embedding_service.servicer import SERVICE, EmbeddingServicer
from inference.life import ModelLife
from inference.loading import LoadedModel
from inference.runner import RunnerLimits
from inference.testing import GatedEngine, fake_loaded_model
from mesh.serving import Capability
from mesh.testing import serve

LIMITS = RunnerLimits(items_per_request=2048, tokens_per_request=20_000, queued_tokens=20_000, batch_tokens=64)
CHECKOUT = Path(__file__).parents[2]
DOCUMENTS = 1200

SMALL_PARTS = """
import sys
from mesh.bulk import writing
from mesh.bulk.__main__ import main
writing.PART_BYTES = 1024  # 32 vectors
raise SystemExit(main(sys.argv[1:]))
"""


def capability(loaded: LoadedModel, limits: RunnerLimits = LIMITS) -> Capability:
    """As the worker's own."""
    life = ModelLife(lambda: Embedder(loaded, limits), capability="embedding")
    servicer = EmbeddingServicer(life, max_request_bytes=1 << 20, max_stream_requests=8)
    return Capability(service=SERVICE, register=servicer.register, start=life.start, stop=life.stop)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An input whose documents' vectors differ by their number of cats."""
    file = tmp_path / "docs.jsonl"
    lines = (json.dumps({"id": f"d{n}", "text": "cat " * (n % 7 + 1) + "dog"}) for n in range(1, DOCUMENTS + 1))
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


class Command:
    """A run of ``mesh.bulk embed`` in a process of its own, with parts of 32 vectors."""

    def __init__(self, source: Path, target: str, *options: str) -> None:
        self.output = source.with_name("vectors.parquet")
        self._arguments = ["embed", "--in", str(source), "--out", str(self.output), "--target", target, *options]
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> asyncio.subprocess.Process:
        """Begin."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SMALL_PARTS, *self._arguments, cwd=CHECKOUT,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return self.process

    async def end(self) -> tuple[int | None, str]:
        """Wait for the end: the exit code, and all that was said."""
        process = self.process or await self.start()
        async with asyncio.timeout(30):
            said, told = await process.communicate()
        return process.returncode, (told + said).decode()

    async def kept_parts(self, count: int, engine: GatedEngine) -> None:
        """Let the engine compute batch after batch until so many parts are on disk."""
        async with asyncio.timeout(20):
            while len(kept_parts(self.output)) < count:
                assert self.process is None or self.process.returncode is None, await self.end()
                engine.let_through(1)
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def stopped_at_the_end(command: Command) -> AsyncIterator[Command]:
    """Leave no process behind, whatever the test finds."""
    try:
        yield command
    finally:
        if command.process is not None and command.process.returncode is None:
            command.process.kill()
            await command.process.wait()


def kept_parts(output: Path) -> list[Path]:
    """The parts of an output that is not complete."""
    return sorted(output.with_name(f"{output.name}.parts").glob("part-*.parquet"))


def ids(output: Path) -> Sequence[str]:
    """Of all rows, in order."""
    return pq.read_table(output)["id"].to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types


ALL_IDS = [f"d{n}" for n in range(1, DOCUMENTS + 1)]


async def test_a_file_becomes_vectors(tmp_path: Path, source: Path) -> None:
    """One row a document, in order, with the very vector that the worker gives it; a second run finds it complete."""
    async with serve([capability(fake_loaded_model(tmp_path / "model"))]) as running:
        code, told = await Command(source, running.target).end()
        assert code == 0, told
        assert "1,200 vectors of 8 numbers, by owner/fake" in told
        again, told = await Command(source, running.target).end()
        assert (again, "is complete" in told) == (0, True)
    table = pq.read_table(source.with_name("vectors.parquet"))
    assert table["id"].to_pylist() == ALL_IDS
    vectors = table["vector"].to_pylist()
    assert vectors[0] == vectors[7]
    assert vectors[0] != vectors[1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["docs.jsonl", "model", "vectors.parquet"]


async def test_after_a_kill_it_goes_on_where_it_was(tmp_path: Path, source: Path) -> None:
    """Killed by signal 9, twice: no row is lost or doubled, and what was kept is not computed again."""
    loaded, engine = GatedEngine.loaded(tmp_path / "model")
    async with serve([capability(loaded)]) as running:
        for parts in (2, 12):
            engine.gate.clear()
            async with stopped_at_the_end(Command(source, running.target)) as command:
                process = await command.start()
                await command.kept_parts(parts, engine)
                process.send_signal(signal.SIGKILL)
                await process.wait()
            engine.gate.set()
        kept = sum(pq.read_metadata(file).num_rows for file in kept_parts(command.output))
        assert kept >= 12 * 32
        await asyncio.sleep(0.2)  # what the killed run had sent is computed or dropped
        computed = sum(len(batch.ids) for batch in engine.batches)
        code, told = await Command(source, running.target).end()
        assert code == 0, told
    assert ids(source.with_name("vectors.parquet")) == ALL_IDS
    assert sum(len(batch.ids) for batch in engine.batches) - computed == DOCUMENTS - kept


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, source: Path, sign: signal.Signals) -> None:
    """Ctrl-C keeps what was answered; the same command does the rest."""
    loaded, engine = GatedEngine.loaded(tmp_path / "model")
    engine.gate.clear()
    async with serve([capability(loaded)]) as running:
        async with stopped_at_the_end(Command(source, running.target)) as command:
            process = await command.start()
            await command.kept_parts(1, engine)
            process.send_signal(sign)
            code, told = await command.end()
        assert code == 130
        assert "the same command goes on" in told
        assert "Traceback" not in told
        engine.gate.set()
        code, told = await Command(source, running.target).end()
        assert code == 0, told
    assert ids(source.with_name("vectors.parquet")) == ALL_IDS


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_it_outlives_a_restart_of_the_worker(tmp_path: Path, source: Path) -> None:
    """A worker that goes away in the middle and comes back finds the run waiting, and no row is lost or doubled."""
    port = free_port()
    loaded, engine = GatedEngine.loaded(tmp_path / "model")
    engine.gate.clear()
    async with stopped_at_the_end(Command(source, f"127.0.0.1:{port}", "--patience", "20")) as command:
        async with serve([capability(loaded)], port=port):
            await command.start()
            await command.kept_parts(1, engine)
            engine.gate.set()
        await asyncio.sleep(0.5)
        async with serve([capability(fake_loaded_model(tmp_path / "model"))], port=port):
            code, told = await command.end()
    assert code == 0, told
    assert ids(command.output) == ALL_IDS


def refusals() -> float:
    """Requests for which this process's workers had no room."""
    return (
        REGISTRY.get_sample_value("mesh_batch_requests_refused_total", {"capability": "embedding", "reason": "full"})
        or 0.0
    )


async def test_it_comes_through_a_worker_that_is_too_small(tmp_path: Path, source: Path) -> None:
    """Two runs share a queue that refuses often; both wait as told, and both end whole."""
    limits = replace(LIMITS, tokens_per_request=100, queued_tokens=100)
    other = source.with_name("other") / "docs.jsonl"
    other.parent.mkdir()
    other.write_bytes(source.read_bytes())
    refused = refusals()
    async with serve([capability(fake_loaded_model(tmp_path / "model"), limits)]) as running:
        ends = await asyncio.gather(*(Command(file, running.target).end() for file in (source, other)))
    assert [code for code, _ in ends] == [0, 0], ends
    assert refusals() > refused
    assert ids(source.with_name("vectors.parquet")) == ids(other.with_name("vectors.parquet")) == ALL_IDS


async def interrupted(source: Path, tmp_path: Path) -> None:
    """Leave a job that has begun: its tenth line is bad."""
    lines = source.read_text().splitlines()
    lines[9] = "{"
    source.write_text("\n".join(lines))
    async with serve([capability(fake_loaded_model(tmp_path / "model"))]) as running:
        code, told = await Command(source, running.target).end()
    assert code == 1, told
    assert "docs.jsonl, line 10: it is not JSON" in told
    assert "--skip-bad-lines" in told


async def test_a_bad_line_can_be_mended_or_left_out(tmp_path: Path, source: Path) -> None:
    """It is told with its number; what came before it is kept either way."""
    await interrupted(source, tmp_path)
    async with serve([capability(fake_loaded_model(tmp_path / "model"))]) as running:
        code, told = await Command(source, running.target, "--skip-bad-lines").end()
    assert code == 0, told
    assert "1 bad lines were left out" in told
    assert ids(source.with_name("vectors.parquet")) == ALL_IDS[:9] + ALL_IDS[10:]


async def test_another_setting_model_or_input_is_refused(tmp_path: Path, source: Path) -> None:
    """Half a file of one kind and half of another is never made; what is there stays."""
    await interrupted(source, tmp_path)
    other_model = fake_loaded_model(tmp_path / "other", name="owner/other")
    async with serve([capability(other_model)]) as running:
        code, told = await Command(source, running.target).end()
        assert (code, "serves owner/other" in told, "began with owner/fake" in told) == (1, True, True), told
        code, told = await Command(source, running.target, "--truncation", "start").end()
        assert (code, "truncation was 'end' and is 'start'" in told) == (2, True), told
        source.write_text(source.read_text().replace("dog", "cat", 1))
        code, told = await Command(source, running.target).end()
        assert (code, "is not the file that this job began with" in told) == (2, True), told
        code, told = await Command(source, running.target, "--restart", "--skip-bad-lines").end()
        assert code == 0, told
    assert len(ids(source.with_name("vectors.parquet"))) == DOCUMENTS - 1
