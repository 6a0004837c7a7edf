"""The fixed texts on which every engine is compared with the float32 reference, and timed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np

from inference.engines import FloatArray, Head
from inference.padding import PaddedBatch
from inference.pooling import normalized
from inference.tokenizing import TextTokenizer, TokenizedInput, Truncation

_SENTENCES = (
    "yes",
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset the password of a locked account?",
    "Der Vertrag verlängert sich um ein Jahr, sofern er nicht gekündigt wird.",
    "La température moyenne a augmenté de 1,2 °C depuis 1880.",
    "机器学习模型把文本变成向量。",
    "Как настроить прокси-сервер?",
    "def add(a: int, b: int) -> int:\n    return a + b",
    "SELECT name, count(*) FROM orders WHERE placed_at > '2024-01-01' GROUP BY name;",
    "ERROR 2024-05-17T08:31:02Z worker[113]: connection reset by peer (10.0.3.17:50051)",
    "≤ ≥ ± µ € £ ¥ 🙂 👍🏽 — “quotes” … (1) [2] {3}",
    "Photosynthesis converts light energy into chemical energy that is stored in glucose.",
    "The parties agree that any dispute arising out of this agreement shall be settled by arbitration. " * 12,
)
_WORDS = """
time year people way day thing world life hand part child eye woman place work week case point government
company number group problem fact river engine paper green quiet sudden measure between carry follow number
result winter market energy signal method history support question answer mountain language simple complex
network memory table
""".split()  # noqa: SIM905 - a list of quoted words fills a page
_QUERY = "How is energy stored in plants?"
_TIMED_TEXTS = 192


def check_inputs(tokenizer: TextTokenizer, head: Head) -> list[TokenizedInput]:
    """Texts of many lengths, scripts and kinds: for fidelity."""
    return _tokenized(tokenizer, head, [*_SENTENCES, *_short_texts(35)])


def timed_inputs(tokenizer: TextTokenizer, head: Head) -> list[TokenizedInput]:
    """Texts of 5 to 25 words: for speed."""
    return _tokenized(tokenizer, head, _short_texts(_TIMED_TEXTS))


def batches(inputs: Sequence[TokenizedInput], budget: int) -> Iterator[list[TokenizedInput]]:
    """The inputs (at least one) sorted by length, in batches of at most ``budget`` tokens, padding included."""
    batch: list[TokenizedInput] = []
    for each in sorted(inputs, key=lambda item: item.tokens):
        if batch and (len(batch) + 1) * each.tokens > budget:
            yield batch
            batch = []
        batch.append(each)
    yield batch


def agreement(reference: list[FloatArray], candidate: list[FloatArray]) -> tuple[float, float]:
    """Smallest and mean cosine between matching rows."""
    cosines = np.concatenate(
        [
            np.atleast_1d(np.sum(normalized(one.astype(np.float64)) * normalized(other.astype(np.float64)), axis=-1))
            for one, other in zip(reference, candidate, strict=True)
        ]
    )
    return float(np.nan_to_num(cosines, nan=-1.0).min()), float(np.nan_to_num(cosines, nan=-1.0).mean())


def score_agreement(reference: list[FloatArray], candidate: list[FloatArray]) -> tuple[float, float]:
    """Smallest and mean agreement of rerankers' scores: 1 less twice the difference of two probabilities.

    At 0.999 no score is off by more than 0.0005, so that no two documents change places that are more than 0.001 apart.
    A cosine would let a score be off by 0.02.
    """
    found = np.array(reference, dtype=np.float64)[:, 0], np.array(candidate, dtype=np.float64)[:, 0]
    agreements = np.nan_to_num(1.0 - 2.0 * np.abs(found[0] - found[1]), nan=-1.0)
    return float(agreements.min()), float(agreements.mean())


def comparable(output: FloatArray, batch: PaddedBatch, head: Head) -> list[FloatArray]:
    """The rows of an engine's output in a form whose cosine means something.

    Token states lose their padding. A logit becomes the pair (p, 1 - p): two of them point the same way when the
    probabilities agree.
    """
    if head is Head.TOKENS:
        return [states[:length] for states, length in zip(output, batch.lengths, strict=True)]
    if head is Head.LOGITS:
        probability = 1.0 / (1.0 + np.exp(-output[:, :1].astype(np.float64)))
        return list(np.concatenate([probability, 1.0 - probability], axis=1).astype(np.float32))
    return list(output)


def _tokenized(tokenizer: TextTokenizer, head: Head, texts: list[str]) -> list[TokenizedInput]:
    if head is Head.LOGITS:
        return list(tokenizer.pairs(_QUERY, texts, Truncation.END).inputs)
    return list(tokenizer.singles(texts, Truncation.END).inputs)


def _short_texts(count: int) -> list[str]:
    chooser = random.Random(20)  # noqa: S311 - the same texts on every machine, not a secret
    return [" ".join(chooser.choices(_WORDS, k=chooser.randint(5, 25))) for _ in range(count)]
