"""``python -m mesh.bulk embed --in docs.jsonl --out vectors.parquet``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from mesh import tracing
from mesh.bulk.failures import BadLine, BulkFailure, Refused
from mesh.bulk.job import EmbedJob, Finished, run
from mesh.bulk.progress import ProgressBar
from mesh.bulk.reading import Fields, InputFormat
from mesh.clients import AsyncEmbeddingServiceClient
from mesh.clients.embedding import EmbedOptions, InputType, Truncation
from mesh.context import acceptable_traceparent
from mesh.settings import SettingsError
from mesh.tls.configured import client_tls

if TYPE_CHECKING:  # cryptography is not loaded without TLS
    from mesh.tls.client import ClientTls

EXIT_STOPPED = 1
EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130

TARGET_VARIABLE = "EMBEDDING_SERVICE_URL"
DEFAULT_TARGET = "127.0.0.1:50051"
_GO_ON = "What was done is kept: the same command goes on from there."


def main(arguments: Sequence[str] | None = None) -> int:
    """Embed a file. Returns the exit code: 1 when it stopped before the end, 2 when it refused to begin."""
    options = _parse(arguments)
    try:
        job, tls = _job(options), client_tls()
        tracing.turn_on("bulk")
        with _quiet_hop(), ProgressBar() as progress, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            finished = runner.run(_embed(job, options.target, tls, progress))
    except (Refused, SettingsError) as refused:
        return _end(str(refused), EXIT_REFUSED)
    except BadLine as bad:
        return _end(
            f"{job.input.name}, {bad}.\nMend the line and run the same command again, which goes on from there; or add "
            "--skip-bad-lines.",
            EXIT_STOPPED,
        )
    except BulkFailure as failure:
        return _end(f"{failure}\n{_GO_ON}", EXIT_STOPPED)
    except OSError as error:
        return _end(f"{job.output}: {error.strerror}.\n{_GO_ON}", EXIT_STOPPED)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return _end(f"Stopped. {_GO_ON}", EXIT_INTERRUPTED)
    finally:
        tracing.turn_off()
    print(_summary(job, finished))
    return 0


@contextmanager
def _quiet_hop() -> Iterator[None]:
    """What the hop says of an outage is told once, in words for this user."""
    logger = logging.getLogger("mesh")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


async def _embed(job: EmbedJob, target: str, tls: ClientTls | None, progress: ProgressBar) -> Finished:
    task = asyncio.current_task()
    if task is not None:
        # The runner turns Ctrl-C into a cancellation; an end that is asked for politely gets the same.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    # The one that a pipeline names in its environment, as OpenTelemetry has it for programs.
    above = acceptable_traceparent(os.environ.get("TRACEPARENT", ""))
    async with AsyncEmbeddingServiceClient(target, tls=tls) as client:
        with tracing.task("bulk embed", parent=above):
            return await run(job, client, progress)


def _end(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def _summary(job: EmbedJob, finished: Finished) -> str:
    done, model = finished.done, finished.model
    vectors = f"{done.rows:,} vectors of {model.dimensions} numbers, by {model.name}"
    if not finished.rows:
        return f"{job.output} is complete: {vectors}."
    rate = finished.rows / finished.seconds
    lines = [f"{job.output}: {vectors}, at {rate:,.0f} texts/s."]
    if done.truncated:
        lines.append(f"{done.truncated:,} texts were longer than the model reads, and cut: see the column truncated.")
    if done.skipped:
        lines.append(f"{done.skipped:,} bad lines were left out.")
    return "\n".join(lines)


def _job(options: argparse.Namespace) -> EmbedJob:
    source: Path = options.input
    if not source.is_file():
        raise Refused(f"{source} is no file that can be read. Only a file can be gone on with after a stop.")
    if options.output.is_dir():
        raise Refused(f"{options.output} is a directory; --out names a file.")
    form = InputFormat(options.format) if options.format else InputFormat.of(source)
    return EmbedJob(
        input=source,
        output=options.output,
        fields=Fields(format=form, text=options.text_field, id=options.id_field),
        options=EmbedOptions(
            model=options.model,
            dimensions=options.dimensions,
            normalize=options.normalize,
            truncation=Truncation(options.truncation),
            input_type=InputType(options.input_type),
        ),
        skip_bad_lines=options.skip_bad_lines,
        restart=options.restart,
        patience_seconds=options.patience,
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mesh.bulk", description="Whole files through the mesh.")
    commands = parser.add_subparsers(dest="command", required=True)
    embed = commands.add_parser(
        "embed",
        help="a file of texts to a Parquet file of vectors",
        description="Embeds a file on the bulk lane. Run again after whatever stopped it, it goes on where it was.",
    )
    embed.add_argument("--in", dest="input", type=Path, required=True, metavar="FILE", help="JSONL or plain text")
    embed.add_argument("--out", dest="output", type=Path, required=True, metavar="FILE", help="the Parquet file")
    embed.add_argument("--format", choices=[each.value for each in InputFormat], help="instead of by the file's ending")
    embed.add_argument("--text-field", default="text", metavar="NAME", help="of JSONL: where the text is (text)")
    embed.add_argument("--id-field", metavar="NAME", help="of JSONL: where the id is (id; else the line's number)")
    target = os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET
    embed.add_argument("--target", default=target, metavar="HOST:PORT", help=f"the embedding worker ({target})")
    embed.add_argument("--model", default="", help="a name or an alias that the worker serves")
    embed.add_argument("--dimensions", type=int, metavar="N", help="cut the vectors, where the model allows it")
    embed.add_argument("--no-normalize", dest="normalize", action="store_false", help="leave the vectors' length")
    embed.add_argument(
        "--input-type", choices=[each.value for each in InputType], default="document", help="what the texts are"
    )
    embed.add_argument(
        "--truncation", choices=[each.value for each in Truncation], default="end",
        help="what to cut off a text longer than the model reads; refuse makes it a bad line",
    )  # fmt: skip
    embed.add_argument("--skip-bad-lines", action="store_true", help="leave them out instead of stopping at the first")
    embed.add_argument("--restart", action="store_true", help="overwrite the output, and what there is of it")
    embed.add_argument(
        "--patience", type=float, default=600.0, metavar="SECONDS", help="wait so long for a worker that is away (600)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
