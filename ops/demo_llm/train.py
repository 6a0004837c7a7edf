"""Train the demo language model: it learns the page ``questions.yaml`` by heart, and nothing else.

    python ops/demo_llm/train.py --output var/models/demo-llm

Needs torch and transformers; takes about half a minute on two cores. A model whose page and recipe have not changed is
left as it is. The model appears whole or not at all: it is trained beside its place and moved there once every answer
was proved word for word. Exit codes: 0 the model is there, 1 it did not learn the page, 2 the page is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
import signal
import sys
import tempfile
from os import environ
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the script runs from anywhere, whether the project is installed or not

RECIPE = ("questions.yaml", "page.py", "learning.py", "train.py", "CARD.md")
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"


def say(line: str) -> None:
    """Progress goes to standard output at once, for the start script to show."""
    print(f"demo model: {line}", flush=True)


def sha256(path: Path) -> str:
    """The file's digest in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def recipe_digest() -> str:
    """One digest over everything that decides what the model becomes."""
    return hashlib.sha256("".join(sha256(HERE / name) for name in RECIPE).encode()).hexdigest()


def is_current(output: Path) -> bool:
    """Whether ``output`` holds a whole model made by this very recipe."""
    try:
        manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, str] = manifest["files"]
        return bool(manifest["recipe"] == recipe_digest()) and all(
            sha256(output / name) == digest for name, digest in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def build(directory: Path, threads: int) -> None:
    """Train the model and write it into ``directory``.

    Raises:
        learning.NotLearnt: an answer is not known word for word.
        ValueError: the page is wrong.
    """
    from ops.demo_llm.page import Page

    page = Page.read(HERE / "questions.yaml")
    say(f"learning {len(page.entries)} answers by heart; this takes about half a minute")
    import torch

    from ops.demo_llm.learning import learn, load_and_prove

    torch.set_num_threads(threads)
    learn(page, directory, say)
    card = (HERE / "CARD.md").read_text(encoding="utf-8")
    (directory / "README.md").write_text(card.replace("{answers}", str(len(page.entries))), encoding="utf-8")
    load_and_prove(page, directory, say)
    for path in directory.iterdir():
        path.chmod(0o644)  # some were made by temporary-file functions, readable by their owner alone
    files = {path.name: sha256(path) for path in sorted(directory.iterdir())}
    manifest = {"recipe": recipe_digest(), "answers": len(page.entries), "files": files}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def publish(finished: Path, output: Path) -> None:
    """Move the finished model to its place; a model that stood there makes way first."""
    retired = finished.with_name(finished.name + ".retired")
    if output.exists():
        output.rename(retired)
    finished.rename(output)
    shutil.rmtree(retired, ignore_errors=True)


def stop_cleanly(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends like Ctrl-C, so that the unfinished model is removed."""
    raise KeyboardInterrupt


def main() -> int:
    """Train, prove and publish; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("var/models/demo-llm"), help="where the model goes")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; more help only where the cores are idle")
    parser.add_argument("--force", action="store_true", help="train also when nothing has changed")
    options = parser.parse_args()
    output: Path = options.output
    if not options.force and is_current(output):
        say(f"{output} is up to date")
        return 0
    signal.signal(signal.SIGTERM, stop_cleanly)
    logging.disable(logging.WARNING)
    environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        finished = work / "model"
        finished.mkdir()
        build(finished, options.threads)
        publish(finished, output)
    except KeyboardInterrupt:
        say("interrupted; nothing was left behind")
        return 130
    except ValueError as error:
        say(f"the page is wrong: {error}")
        return 2
    except RuntimeError as error:
        say(f"not published: {error}")
        return 1
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"ready in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
