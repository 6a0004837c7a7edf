"""Counting tokens as the embedding model will, with the `tokenizers` library alone: no transformers, no torch."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.errors import ModelUnusable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CHARACTERS_PER_TOKEN = 16
"""More characters per token than this is no language but data: a word-piece tokenizer reads a word of a megabyte as one
unknown token, and a chunk of a megabyte is of no use. Such text is cut as if each 16 characters were a token."""


class TokenCounter:
    """Counts tokens with one model's tokenizer.

    Attributes:
        special_tokens: how many tokens the model adds around every text, for example 2 for [CLS] and [SEP].
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.special_tokens = tokenizer.num_special_tokens_to_add(is_pair=False)

    @classmethod
    def load(cls, path: Path) -> TokenCounter:
        """From a tokenizer.json.

        Raises:
            ModelUnusable: the file is missing or not a tokenizer.
        """
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelUnusable(
                "The tokenizer cannot be read; name a model's folder with a whole tokenizer.json."
            ) from error
        return cls(tokenizer)

    def content_tokens(self, text: str) -> int:
        """Tokens of the text alone."""
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def embedded_tokens(self, text: str) -> int:
        """Tokens of the text as the model reads it, its special tokens included."""
        return self.content_tokens(text) + self.special_tokens

    def budget_tokens(self, text: str) -> int:
        """What the text costs of a chunk's budget: its tokens, and no fewer than its characters allow."""
        return max(self.content_tokens(text), len(text) // _CHARACTERS_PER_TOKEN)


@lru_cache(maxsize=8)
def counter_for(path: str) -> TokenCounter:
    """The counter of a tokenizer.json; read once per process."""
    return TokenCounter.load(Path(path))


def max_tokens_of(model_folder: Path, default: int = 512) -> int:
    """The longest text that the model in a folder reads, in tokens: what sentence-transformers' own settings say."""
    try:
        settings = json.loads((model_folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
        longest = int(settings["max_seq_length"])
    except (OSError, ValueError, KeyError, TypeError):
        return default
    return longest if longest > 0 else default
