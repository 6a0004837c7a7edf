"""Query and document as a language model is asked about them: laid into the prompt of its profile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inference.profiles import DOCUMENT, INSTRUCTION, QUERY, RerankingProfile
from inference.tokenizing import (
    TextTokenizer,
    Tokenized,
    TokenizedInput,
    Truncation,
    cut,
    library_tokenizer,
    readable,
    refuse_if_asked,
)
from mesh.errors import ModelUnusable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LEAST_ROOM = 16
"""Tokens for query and document beside the prompt. With fewer there is nothing to judge."""


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """The ids whose logits after the prompt are the answer; ``no`` is None where only ``yes`` counts."""

    yes: int
    no: int | None


@dataclass(frozen=True, slots=True)
class _Around:
    """The prompt for one query: the ids before and after the piece with the document, and that piece's beginning."""

    before: tuple[int, ...]
    lead: str
    after: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.before) + len(self.after)


class PromptTokenizer(TextTokenizer):
    """A TextTokenizer whose pairs are read through a prompt.

    The template is never cut: of a pair that is too long the query keeps its beginning, at most half of the room, and
    the document gives up the rest. Special tokens in a query or document are read as plain text: a document cannot
    close its turn and answer for the model.

    Args:
        tokenizer: the model's own.
        profile: the template and what belongs to it.
        name: the model's, for messages.
        max_tokens: what the model reads at once, or less.

    Attributes:
        answers: the ids of the answers.

    Raises:
        ModelUnusable: the tokenizer is not the one that the profile was written for, or the prompt leaves no room.
    """

    def __init__(self, tokenizer: Tokenizer, profile: RerankingProfile, *, name: str, max_tokens: int) -> None:
        from tokenizers import Tokenizer as Library

        super().__init__(tokenizer, max_tokens=min(max_tokens, profile.max_tokens or max_tokens))
        self._plain: Tokenizer = Library.from_str(tokenizer.to_str())
        self._plain.encode_special_tokens = True
        self._profile = profile
        self._require_whole(name)
        self.answers = AnswerTokens(self._ids(profile.yes)[0], self._ids(profile.no)[0] if profile.no else None)
        empty = self._around("")
        self._room = self.max_tokens - empty.size - len(self._ids(empty.lead, plain=True))
        if self._room < _LEAST_ROOM:
            raise ModelUnusable(
                f"The prompt of {name} fills the {self.max_tokens} tokens that are read. Raise the longest input, or "
                "shorten the instruction.",
                reason="PROFILE_INVALID",
            )

    @classmethod
    def load_prompted(cls, path: Path, profile: RerankingProfile, *, name: str, max_tokens: int) -> PromptTokenizer:
        """Read ``tokenizer.json``.

        Raises:
            ModelUnusable: it is missing or damaged, or as the class says.
        """
        with readable(name):
            return cls(library_tokenizer(path), profile, name=name, max_tokens=max_tokens)

    def pairs(
        self,
        query: str,
        documents: Sequence[str],
        truncation: Truncation,
        *,
        max_document_tokens: int | None = None,
        param: str = "documents",
    ) -> Tokenized:
        """The prompt for one query with each document. See TextTokenizer.pairs."""
        kept = self._beginning(query, self._room // 2)
        around = self._around(kept)
        room = self.max_tokens - around.size
        inputs: list[TokenizedInput] = []
        truncated: list[int] = []
        for position, (ids, lead) in enumerate(self._pieces(around.lead, documents)):
            most = room if max_document_tokens is None else min(room, lead + max_document_tokens)
            if len(ids) > most or len(kept) < len(query):
                refuse_if_asked(truncation, param, position, len(ids) + around.size, self.max_tokens)
            if len(ids) > most:
                truncated.append(position)
            inputs.append(TokenizedInput((*around.before, *cut(ids, most, truncation, kept=lead), *around.after)))
        characters = len(query) + sum(map(len, documents))
        return Tokenized(tuple(inputs), sum(each.tokens for each in inputs), characters, tuple(truncated))

    def _around(self, query: str) -> _Around:
        before: list[int] = []
        after: list[int] = []
        lead: str | None = None
        for piece in self._profile.template:
            filled = piece.replace(INSTRUCTION, self._profile.instruction)
            if filled.endswith(DOCUMENT):
                lead = filled.removesuffix(DOCUMENT).replace(QUERY, query)
            else:
                ids = self._ids(filled.replace(QUERY, query), plain=QUERY in piece)
                (before if lead is None else after).extend(ids)
        return _Around(tuple(before), lead or "", tuple(after))

    def _pieces(self, lead: str, documents: Sequence[str]) -> Iterator[tuple[list[int], int]]:
        """The ids of each document behind ``lead``, and how many of them are the lead's.

        Tokenized together: the space that ends the lead belongs to the document's first word.
        """
        for each in self._plain.encode_batch([lead + document for document in documents], add_special_tokens=False):
            yield each.ids, sum(end <= len(lead) for _, end in each.offsets[: len(lead) + 1])

    def _beginning(self, query: str, tokens: int) -> str:
        encoded = self._plain.encode(query, add_special_tokens=False)
        return query if len(encoded.ids) <= tokens else query[: encoded.offsets[tokens - 1][1]]

    def _ids(self, text: str, *, plain: bool = False) -> list[int]:
        tokenizer = self._plain if plain else self._tokenizer
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _require_whole(self, name: str) -> None:
        profile = self._profile
        whole = (profile.yes, *([profile.no] if profile.no else []), *profile.whole_tokens)
        for text in whole:
            count = len(self._ids(text))
            if count != 1:
                raise ModelUnusable(
                    f"The profile of {name} takes {text!r} for one token, and the tokenizer makes {count} of it. The "
                    "profile was written for another tokenizer; write one for this model.",
                    reason="PROFILE_WRONG_TOKENS",
                )
        if profile.no and self._ids(profile.yes) == self._ids(profile.no):
            raise ModelUnusable(
                f"The tokenizer of {name} has the same token for {profile.yes!r} and {profile.no!r}. The profile was "
                "written for another tokenizer; write one for this model.",
                reason="PROFILE_WRONG_TOKENS",
            )
