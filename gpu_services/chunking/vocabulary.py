"""Which tokenizers chunks can be measured with, and where their files are."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from inference import hub, package
from inference.models import DEFAULT_EMBEDDING_MODEL, PINNED_REVISIONS
from mesh.docling.tokens import counter_for, max_tokens_of
from mesh.errors import InvalidRequest, ModelUnusable

MIN_TOKENS = 16
_HUB_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One embedding model's tokenizer."""

    name: str
    tokenizer_path: Path
    max_tokens: int

    def budget(self, max_tokens: int | None) -> int:
        """The longest chunk that a request asks for; raise InvalidRequest out of bounds."""
        if max_tokens is None:
            return self.max_tokens
        if not MIN_TOKENS <= max_tokens <= self.max_tokens:
            raise InvalidRequest(
                f"max_tokens must be from {MIN_TOKENS} to {self.max_tokens}, which is what {self.name} reads; "
                f"it is {max_tokens}.",
                param="max_tokens",
            )
        return max_tokens


@dataclass(frozen=True, slots=True)
class Vocabularies:
    """The tokenizers offered, by name; the first is the default."""

    offered: tuple[Vocabulary, ...]
    aliases: Mapping[str, str]

    @property
    def default(self) -> Vocabulary:
        """What an empty name means."""
        return self.offered[0]

    def find(self, name: str) -> Vocabulary:
        """By name or alias, a short name being an alias of its long one; raise InvalidRequest."""
        if not name:
            return self.default
        wanted = self.aliases.get(name, name)
        for vocabulary in self.offered:
            if wanted in (vocabulary.name, vocabulary.name.rpartition("/")[2]):
                return vocabulary
        known = ", ".join(vocabulary.name for vocabulary in self.offered)
        raise InvalidRequest(
            f"There is no tokenizer of that name here; offered: {known}.", reason="TOKENIZER_UNKNOWN", param="tokenizer"
        )


async def locate(name: str) -> Vocabulary:
    """The vocabulary of a model: a local folder, the hub's cache, the packaged default model, or the hub.

    Raises:
        ModelUnusable: it is nowhere, or not a tokenizer.
    """
    folder = await asyncio.to_thread(_on_this_machine, name) or await _from_hub(name)
    path = folder / "tokenizer.json"
    await asyncio.to_thread(counter_for, str(path))
    is_path = name.startswith((os.sep, ".", "~"))
    return Vocabulary(folder.name if is_path else name, path, max_tokens_of(folder))


def _on_this_machine(name: str) -> Path | None:
    as_path = Path(name).expanduser()
    if as_path.is_dir():
        return as_path
    cached = hub.cached_snapshot(name, PINNED_REVISIONS.get(name, "main"))
    if cached is not None and (cached / "tokenizer.json").is_file():
        return cached
    return package.model_directory() if name == DEFAULT_EMBEDDING_MODEL else None


async def _from_hub(name: str) -> Path:
    """Fetch the two small files that counting needs, not the model."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    revision = PINNED_REVISIONS.get(name, "main")

    def fetch() -> Path:
        tokenizer = Path(hf_hub_download(name, "tokenizer.json", revision=revision))
        with suppress(EntryNotFoundError):  # not a sentence-transformers model; its length is then the default
            hf_hub_download(name, "sentence_bert_config.json", revision=revision)
        return tokenizer.parent

    try:
        async with asyncio.timeout(_HUB_SECONDS):
            return await asyncio.to_thread(fetch)
    except Exception as error:
        raise ModelUnusable(
            f"The tokenizer of {name[:100]} is not on this machine and the hub could not be reached; "
            "name a model folder in GPU_SERVICES_TOKENIZERS, or start with access to the hub once.",
            reason="MODEL_NOT_FOUND",
        ) from error
