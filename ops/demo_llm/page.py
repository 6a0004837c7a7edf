"""The page of questions and answers, and every prompt form in which the demo model has to know it.

A prompt is a *prefix* (what stands before the question: nothing, a system message, retrieved passages, an earlier turn)
and a *question part*. Training changes the prefix and keeps the answer, so that the question at the end decides.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import yaml

END = "<|end|>"
ROLES = ("system", "user", "assistant", "tool")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
PASSAGES_HEADING = "Use these passages:\n"
QUESTION_HEADING = "Question: "
ANSWER_HEADING = "\nAnswer:"


@dataclass(frozen=True)
class Entry:
    """A question and the answer to it, word for word."""

    question: str
    answer: str


@dataclass(frozen=True)
class Page:
    """All entries, and the answer to everything else."""

    entries: tuple[Entry, ...]
    unknown: str

    @classmethod
    def read(cls, path: Path) -> Page:
        """The page in ``path``; ValueError says which entry is wrong."""
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = tuple(
            Entry(question=item["question"].strip(), answer=item["answer"].strip()) for item in raw["entries"]
        )
        questions = [entry.question for entry in entries]
        for question in questions:
            if questions.count(question) > 1:
                raise ValueError(f"The question {question!r} stands twice in {path.name}; keep one of them.")
        return cls(entries=entries, unknown=raw["unknown"].strip())

    def text(self) -> str:
        """The whole page as running text."""
        return "\n".join(f"{entry.question}\n{entry.answer}" for entry in self.entries) + f"\n{self.unknown}"


@dataclass(frozen=True)
class Form:
    """One way to ask. ``{}`` in ``question`` stands for the question, in ``answer`` for the answer."""

    prefix: str
    question: str
    answer: str = "{}" + END

    def ask(self, question: str) -> str:
        """The text from the end of the prefix to where the answer begins."""
        return self.question.replace("{}", question)

    def reply(self, answer: str) -> str:
        """The answer as it follows, with its end mark."""
        return self.answer.replace("{}", answer)


CHAT_QUESTION = f"<|user|>{{}}{END}<|assistant|>"
PASSAGES_QUESTION = f"\n\n{QUESTION_HEADING}{{}}{END}<|assistant|>"
PLAIN = Form(prefix="", question=CHAT_QUESTION)
RAW = Form(prefix="", question=f"{QUESTION_HEADING}{{}}{ANSWER_HEADING}", answer=" {}" + END)
INSTRUCTIONS = (
    "You are a friendly assistant.",
    "Use only the given passages.",
    "If you do not know, say so.",
    "Be brief and exact.",
    "Reply in English.",
    "You help the operators of a server.",
    "Cite the number of the passage.",
    "Never invent anything.",
)
RAW_AFTER_PASSAGES = f"\n\n{QUESTION_HEADING}{{}}{ANSWER_HEADING}"


def with_system(system: str) -> Form:
    """Asked plainly, after a system message."""
    return Form(prefix=f"<|system|>{system}{END}", question=CHAT_QUESTION)


def with_passages(passages: str, system: str = "") -> Form:
    """Asked below retrieved passages, as docs describe it."""
    before = f"<|system|>{system}{END}" if system else ""
    return Form(prefix=f"{before}<|user|>{PASSAGES_HEADING}{passages}", question=PASSAGES_QUESTION)


def english() -> list[str]:
    """Paragraphs of plain English that every CPython brings: its own documentation. They stand in for real passages."""
    paragraphs = (re.sub(r"\s+", " ", part).strip() for text in topics.values() for part in text.split("\n\n"))
    return [paragraph for paragraph in paragraphs if 60 < len(paragraph) < 900]


class Noise:
    """Text that must not change an answer: passages, system messages, earlier turns, questions nobody taught."""

    def __init__(self, page: Page, rng: random.Random) -> None:
        self._page = page
        self._rng = rng
        self._paragraphs = english()
        self._page_words = sorted(set(re.findall(r"[A-Za-z]{3,}", page.text())))
        self._words = sorted({word for text in self._paragraphs for word in re.findall(r"[a-z]{3,12}", text)})

    def passages(self, characters: int) -> str:
        """About so many characters of passages, numbered or not, at times with the page's own sentences among them."""
        numbered, taken, parts = self._rng.random() < 0.5, 0, list[str]()
        while taken < characters:
            part = self._rng.choice(self._paragraphs)
            draw = self._rng.random()
            if draw < 0.15:
                part = self._scraps(self._rng.randint(5, 60))
            elif draw < 0.3:
                entry = self._rng.choice(self._page.entries)
                part = self._rng.choice((entry.question, entry.answer, f"{entry.question} {entry.answer}"))
            part = part[: max(20, characters - taken)]
            taken += len(part)
            parts.append(f"[{len(parts) + 1}] {part}" if numbered else part)
        return self._rng.choice(("\n", "\n\n")).join(parts)

    def forms(self, longest: int) -> tuple[Form, ...]:
        """Forms that share one prefix, drawn at random, of at most about ``longest`` characters."""
        return (PLAIN, RAW) if self._rng.random() < 0.35 else (self._prefixed(longest),)

    def _prefixed(self, longest: int) -> Form:
        draw = self._rng.random()
        if draw < 0.25:
            return with_system(self._system())
        if draw < 0.35:
            earlier = self._rng.choice(self._page.entries)
            return Form(prefix=PLAIN.ask(earlier.question) + PLAIN.reply(earlier.answer), question=CHAT_QUESTION)
        passages = self.passages(self._rng.randint(40, max(41, longest)))
        if draw < 0.5:
            return Form(prefix=passages, question=RAW_AFTER_PASSAGES, answer=RAW.answer)
        return with_passages(passages, system=self._system() if draw < 0.72 else "")

    def entries(self, rows: int) -> Iterator[Entry]:
        """Entries drawn at random, their questions at times written a little differently; one in seven is untaught."""
        untaught = rows // 7
        for entry in self._rng.sample(self._page.entries, min(rows - untaught, len(self._page.entries))):
            yield Entry(question=self._rewritten(entry.question), answer=entry.answer)
        for _ in range(untaught):
            yield Entry(question=self._untaught(), answer=self._page.unknown)

    def _scraps(self, words: int) -> str:
        """Words, names and marks in no order, as in tables, paths and code: real documents hold more than English."""
        marks = ("/", ".", "<", ">", "=", '"', ":", "-", "(", ")", "•", "\n", "0", "17", "_")
        parts = self._rng.choices(self._words + self._page_words, k=words)
        glue = (" ", " ", self._rng.choice(marks), self._rng.choice(marks))
        return "".join(
            (part.upper() if self._rng.random() < 0.2 else part) + self._rng.choice(glue) for part in parts
        ).strip()

    def _system(self) -> str:
        """A system message: a passage, or a few instructions, or words at random."""
        draw = self._rng.random()
        if draw < 0.3:
            return self.passages(self._rng.randint(20, 300))
        if draw < 0.7:
            return " ".join(self._rng.sample(INSTRUCTIONS, self._rng.randint(1, 3)))
        words = self._rng.choices(self._words + self._page_words, k=self._rng.randint(3, 30))
        return f"{' '.join(words).capitalize()}."

    def _rewritten(self, question: str) -> str:
        draw = self._rng.random()
        if draw < 0.1:
            return question.lower()
        return question.rstrip("?") if draw < 0.2 else question

    def _untaught(self) -> str:
        first, second, third = (self._rng.choice(self._words) for _ in range(3))
        return self._rng.choice(
            (
                f"What is the {first} of {second}?",
                f"Who wrote the {first} {second}?",
                f"How do I {first} a {second}?",
                f"Which {first} does the {second} use?",
                f"Why is the {first} so {second}?",
                f"Tell me about {first} and {second}.",
                f"Write a {first} about the {second} {third}.",
                f"What does {first} mean?",
                f"When was the {first} {second}?",
                f"{first.capitalize()} {second} {third}",
                self._rng.choice(self._paragraphs)[:60],
            )
        )
