"""Texts to token ids: with the model's own tokenizer, cut to the model's length, counted. No framework is imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.errors import InvalidRequest, ModelUnusable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PROBE = "a"
_PAIR_PROBE = "b"


class Truncation(Enum):
    """What happens to an input that is longer than the model reads."""

    END = "end"
    """Keep the beginning."""
    START = "start"
    """Keep the end."""
    REFUSE = "refuse"
    """Refuse the request, naming the input."""


@dataclass(frozen=True, slots=True)
class TokenizedInput:
    """One input as the model reads it, special tokens included. ``type_ids`` is set for pairs only."""

    ids: Sequence[int]
    type_ids: Sequence[int] | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A request's inputs in their order.

    Attributes:
        tokens: what the model will read, special tokens included.
        characters: of the inputs before truncation.
        truncated: positions of the inputs that were cut.
    """

    inputs: tuple[TokenizedInput, ...]
    tokens: int
    characters: int
    truncated: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Cutting:
    """What to cut inputs to, at which end, and how many tokens at the beginning stay in any case."""

    truncation: Truncation
    max_tokens: int
    kept: int = 0


@dataclass(frozen=True, slots=True)
class _Frame:
    """The special tokens around an input: ``before`` text ``after``."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.before) + len(self.after)


@dataclass(frozen=True, slots=True)
class _PairFrame:
    """The special tokens around a pair, each with the type id it carries."""

    before: tuple[tuple[int, int], ...]
    between: tuple[tuple[int, int], ...]
    after: tuple[tuple[int, int], ...]
    first_type: int
    second_type: int

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


class TextTokenizer:
    """Tokenizes single texts, token ids and query–document pairs for one model. Safe to use from several threads.

    Texts are tokenized whole and without special tokens, then cut and framed here: the library's own truncation is
    a state of the shared tokenizer, and two requests may ask for different sides.

    Attributes:
        specials: how many special tokens stand before and after a single text.
        vocabulary: ids that texts can become.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int, lower_case: bool = False) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._lower_case = lower_case
        self._frame = _single_frame(tokenizer)
        self.specials = (len(self._frame.before), len(self._frame.after))
        self.max_tokens = max_tokens
        self.vocabulary: int = tokenizer.get_vocab_size(with_added_tokens=True)

    @classmethod
    def load(cls, path: Path, *, name: str, max_tokens: int, lower_case: bool = False) -> TextTokenizer:
        """Read ``tokenizer.json``.

        Raises:
            ModelUnusable: it is missing or damaged.
        """
        with readable(name):
            return cls(library_tokenizer(path), max_tokens=max_tokens, lower_case=lower_case)

    def count(self, text: str) -> int:
        """How many tokens a text has, without special ones."""
        return len(self._encode([text])[0])

    def singles(
        self,
        texts: Sequence[str],
        truncation: Truncation,
        *,
        param: str = "input",
        max_tokens: int | None = None,
        prompt: str = "",
    ) -> Tokenized:
        """Tokenize independent texts.

        Args:
            texts: the inputs, none of them empty.
            truncation: what to do with long ones.
            param: the caller's name of the list, for messages.
            max_tokens: a tighter limit than the model's, special tokens included.
            prompt: what each of the texts begins with; it is never cut off, whichever end is.

        Raises:
            InvalidRequest: an input is too long and ``truncation`` refuses.
        """
        kept = self.count(prompt) if prompt and truncation is Truncation.START else 0
        characters = _characters(texts) - len(prompt) * len(texts)
        cutting = _Cutting(truncation, max_tokens or self.max_tokens, kept)
        return self._framed(self._encode(texts), cutting, param, characters)

    def token_inputs(
        self, inputs: Sequence[Sequence[int]], truncation: Truncation, *, param: str = "input"
    ) -> Tokenized:
        """Frame inputs that are already ids of this model's vocabulary. Characters count as 0.

        What truncation leaves out is neither copied nor looked at.

        Raises:
            InvalidRequest: an id is outside the vocabulary, or an input is too long and ``truncation`` refuses.
        """
        found = self._framed(inputs, _Cutting(truncation, self.max_tokens), param, 0)
        for position, each in enumerate(found.inputs):
            if not 0 <= min(each.ids) <= max(each.ids) < self.vocabulary:
                raise InvalidRequest(
                    f"{param}[{position}] holds a token id outside this model's vocabulary of {self.vocabulary}. "
                    "Send ids of the model's own tokenizer, or send the text.",
                    reason="TOKEN_ID_OUT_OF_RANGE",
                    param=f"{param}[{position}]",
                )
        return found

    def pairs(
        self,
        query: str,
        documents: Sequence[str],
        truncation: Truncation,
        *,
        max_document_tokens: int | None = None,
        param: str = "documents",
    ) -> Tokenized:
        """Tokenize one query with each document, the longer of the two cut first, as cross-encoders are trained.

        A query keeps its beginning, and at least half of the room whatever the document.

        Args:
            query: what is asked, not empty.
            documents: what is scored.
            truncation: what to do with pairs that are longer than the model reads.
            max_document_tokens: a tighter limit for each document, without special tokens.
            param: the caller's name of the documents, for messages.

        Raises:
            InvalidRequest: a pair is too long and ``truncation`` refuses.
        """
        frame = _pair_frame(self._tokenizer)
        (query_ids,) = self._encode([query])
        room = self.max_tokens - frame.size
        inputs: list[TokenizedInput] = []
        truncated: list[int] = []
        for position, ids in enumerate(self._encode(documents)):
            allowed = ids if max_document_tokens is None else cut(ids, max_document_tokens, truncation)
            first, second = longest_first(len(query_ids), len(allowed), room)
            if first < len(query_ids) or second < len(ids):
                refuse_if_asked(truncation, param, position, len(query_ids) + len(ids) + frame.size, self.max_tokens)
            if second < len(ids):
                truncated.append(position)
            inputs.append(_pair(frame, query_ids[:first], cut(allowed, second, truncation)))
        characters = len(query) + _characters(documents)
        return Tokenized(tuple(inputs), sum(each.tokens for each in inputs), characters, tuple(truncated))

    def _framed(
        self,
        encoded: Sequence[Sequence[int]],
        cutting: _Cutting,
        param: str,
        characters: int,
    ) -> Tokenized:
        limit = min(self.max_tokens, cutting.max_tokens)
        room = max(1, limit - self._frame.size)
        before, after = self._frame.before, self._frame.after
        inputs: list[TokenizedInput] = []
        truncated: list[int] = []
        for position, ids in enumerate(encoded):
            if len(ids) > room:
                refuse_if_asked(cutting.truncation, param, position, len(ids) + self._frame.size, limit)
                truncated.append(position)
                ids = cut(ids, room, cutting.truncation, kept=cutting.kept)  # noqa: PLW2901 - takes the place of the whole one
            inputs.append(TokenizedInput((*before, *ids, *after)))
        return Tokenized(tuple(inputs), sum(each.tokens for each in inputs), characters, tuple(truncated))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        batch = [text.lower() for text in texts] if self._lower_case else list(texts)
        return [each.ids for each in self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)]


def library_tokenizer(path: Path) -> Tokenizer:
    """What ``tokenizer.json`` in ``path`` holds; raises whatever the library raises."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path / "tokenizer.json"))


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Raise ModelUnusable for whatever a defective ``tokenizer.json`` makes the library raise."""
    try:
        yield
    except ModelUnusable:
        raise
    except Exception as error:  # the library raises plain Exception for every defect of the file
        raise ModelUnusable(
            f"{name}: tokenizer.json is missing or cannot be read. Fetch the model again.",
            reason="MODEL_TOKENIZER_MISSING",
        ) from error


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each of two inputs fit into ``room`` when always the longer one is cut."""
    if first + second <= room:
        return first, second
    half = room // 2
    if first <= half:
        return first, room - first
    if second <= half:
        return room - second, second
    # An odd one is the longer's.
    return (room - half, half) if first > second else (half, room - half)


def cut(ids: Sequence[int], keep: int, truncation: Truncation, *, kept: int = 0) -> Sequence[int]:
    """At most ``keep`` of the ids; where the beginning goes, the first ``kept`` of it stay."""
    if len(ids) <= keep:
        return ids
    if truncation is not Truncation.START:
        return ids[:keep]
    return (*ids[:kept], *ids[len(ids) - keep + kept :]) if kept else ids[len(ids) - keep :]


def refuse_if_asked(truncation: Truncation, param: str, position: int, tokens: int, limit: int) -> None:
    """Raise InvalidRequest for an input that is too long, where ``truncation`` refuses such."""
    if truncation is Truncation.REFUSE:
        raise InvalidRequest(
            f"{param}[{position}] has {tokens} tokens with special tokens, and {limit} are read. "
            "Shorten it, or allow truncation.",
            reason="INPUT_TOO_LONG",
            param=f"{param}[{position}]",
        )


def _characters(texts: Sequence[str]) -> int:
    return sum(map(len, texts))


def _single_frame(tokenizer: Tokenizer) -> _Frame:
    """Learnt from what the tokenizer puts around a probe: post-processors have no common description."""
    bare = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    framed = tokenizer.encode(_PROBE, add_special_tokens=True).ids
    at = _position(framed, bare, 0)
    return _Frame(tuple(framed[:at]), tuple(framed[at + len(bare) :]))


def _pair_frame(tokenizer: Tokenizer) -> _PairFrame:
    first = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    second = tokenizer.encode(_PAIR_PROBE, add_special_tokens=False).ids
    framed = tokenizer.encode(_PROBE, _PAIR_PROBE, add_special_tokens=True)
    typed = list(zip(framed.ids, framed.type_ids, strict=True))
    one = _position(framed.ids, first, 0)
    two = _position(framed.ids, second, one + len(first))
    return _PairFrame(
        before=tuple(typed[:one]),
        between=tuple(typed[one + len(first) : two]),
        after=tuple(typed[two + len(second) :]),
        first_type=typed[one][1],
        second_type=typed[two][1],
    )


def _position(framed: list[int], bare: list[int], start: int) -> int:
    for at in range(start, len(framed) - len(bare) + 1):
        if framed[at : at + len(bare)] == bare:
            return at
    raise ValueError("the tokenizer rewrites a plain letter; its special tokens cannot be told apart")


def _pair(frame: _PairFrame, first: Sequence[int], second: Sequence[int]) -> TokenizedInput:
    specials = (frame.before, frame.between, frame.after)
    before, between, after = (tuple(token for token, _ in each) for each in specials)
    before_types, between_types, after_types = (tuple(kind for _, kind in each) for each in specials)
    ids = (*before, *first, *between, *second, *after)
    types = (
        *before_types,
        *(frame.first_type,) * len(first),
        *between_types,
        *(frame.second_type,) * len(second),
        *after_types,
    )
    return TokenizedInput(ids, types)
