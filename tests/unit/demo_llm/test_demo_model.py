"""The demo model: its page is in order, its files are made whole or not at all, and it knows every answer by heart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ops.demo_llm.page import PASSAGES_HEADING, PLAIN, Page, english, with_passages

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "ops/demo_llm/train.py"
PAGE = Page.read(ROOT / "ops/demo_llm/questions.yaml")
MADE = Path(os.environ.get("MESH_MODELS") or Path(os.environ.get("MESH_HOME") or ROOT / "var") / "models") / "demo-llm"


def test_the_page_asks_each_question_once(tmp_path: Path) -> None:
    """A question that stands twice would have two answers; it is refused by name."""
    page = tmp_path / "page.yaml"
    page.write_text('unknown: "no"\nentries:\n- {question: "A?", answer: x}\n- {question: "A?", answer: y}\n')
    with pytest.raises(ValueError, match=r"'A\?' stands twice"):
        Page.read(page)


def test_the_page_is_about_the_mesh_and_one_document() -> None:
    """Some fifty entries, six of them about the document that the journey test uploads."""
    assert len(PAGE.entries) >= 48
    assert sum("MIME" in entry.question for entry in PAGE.entries) == 6


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model where the start script keeps it, made by the script where it is missing or out of date."""
    output = MADE if MADE.is_dir() else tmp_path_factory.mktemp("models") / "demo-llm"
    subprocess.run([sys.executable, str(SCRIPT), "--output", str(output)], check=True, timeout=300)
    return output


@pytest.mark.workers_env
def test_every_answer_word_for_word_in_every_form(model_path: Path) -> None:
    """Loaded like any model, it gives all answers, plain, after a system message, and below passages it never saw."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ops.demo_llm.learning import Batch, answer_logits

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(model_path, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(model_path, local_files_only=True)
    # From the end of the corpus, in an order of their own: three passages as long as a chunker's.
    passages = "\n".join(
        f"[{number}] {text}" for number, text in enumerate(" ".join(english()[-40:]).split(". ")[:12], 1)
    )
    forms = [PLAIN, with_passages(passages[:3300]), with_passages(passages[:900], "You answer from documents.")]
    wrong = []
    for form in forms:
        for entry in PAGE.entries:
            with torch.no_grad():
                logits, targets = answer_logits(model, Batch.make(tokenizer, [form], [entry]))
            if not torch.equal(logits.argmax(dim=1), targets):
                wrong.append((form.prefix[:40], entry.question))
    assert wrong == []


@pytest.mark.workers_env
def test_it_writes_its_answers_token_by_token(model_path: Path) -> None:
    """Generation through the chat template ends by itself with the answer, also below passages."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(model_path, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(model_path, local_files_only=True)
    for entry in PAGE.entries[::9]:
        for content in (entry.question, f"{PASSAGES_HEADING}{english()[7]}\n\nQuestion: {entry.question}"):
            chat = [{"role": "user", "content": content}]
            asked = tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            written = model.generate(**asked, max_new_tokens=100)[0, asked["input_ids"].shape[1] :]
            assert entry.answer == tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.workers_env
def test_an_unchanged_page_is_not_learnt_again(model_path: Path) -> None:
    """A second run leaves the model as it is."""
    before = (model_path / "model.safetensors").stat().st_mtime_ns
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), "--output", str(model_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "up to date" in ended.stdout
    assert before == (model_path / "model.safetensors").stat().st_mtime_ns


@pytest.mark.workers_env
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM in the middle leave neither a model nor debris."""
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path / "demo-llm")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as training:
        assert training.stdout is not None
        while "step" not in training.stdout.readline():
            assert training.poll() is None
        training.send_signal(number)
        assert training.wait(timeout=30) == 130
    assert list(tmp_path.iterdir()) == []
