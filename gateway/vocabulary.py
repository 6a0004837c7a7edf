"""Turns token ids of OpenAI's vocabularies back into text.

Some clients tokenise with OpenAI's vocabulary before they send (LangChain does by default). Such ids mean nothing to
any other model, so tiktoken makes them text again. Its own loader is left aside: it would replace a missing or damaged
file by a download. Here an operator puts the file into a folder, in the form in which tiktoken publishes and caches it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.errors import InvalidRequest, MeshError

if TYPE_CHECKING:
    from tiktoken import Encoding


@dataclass(frozen=True, slots=True)
class VocabularyFile:
    """A published vocabulary: where tiktoken gets it, what it must hash to, and the ids that stand outside the file."""

    name: str
    url: str
    sha256: str
    special: tuple[tuple[int, str], ...]

    @property
    def file_names(self) -> tuple[str, str]:
        """Its own name, and the name under which tiktoken caches it."""
        cached = hashlib.sha1(self.url.encode(), usedforsecurity=False).hexdigest()
        return f"{self.name}.tiktoken", cached


CL100K_BASE = VocabularyFile(
    name="cl100k_base",
    url="https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken",
    sha256="223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    special=(
        (100257, "<|endoftext|>"),
        (100258, "<|fim_prefix|>"),
        (100259, "<|fim_middle|>"),
        (100260, "<|fim_suffix|>"),
        (100276, "<|endofprompt|>"),
    ),
)
O200K_BASE = VocabularyFile(
    name="o200k_base",
    url="https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken",
    sha256="446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    special=((199999, "<|endoftext|>"), (200018, "<|endofprompt|>")),
)
PUBLISHED = {file.name: file for file in (CL100K_BASE, O200K_BASE)}


class OpenAIVocabulary:
    """Decodes token ids, once its file was found. The file is read at the first need, off the event loop."""

    def __init__(self, file: VocabularyFile, directory: Path | None) -> None:
        self._file = file
        self._directory = directory
        self._encoding: Encoding | None = None
        self._reading = asyncio.Lock()

    async def decode(self, inputs: Sequence[Sequence[int]], *, param: str) -> list[str]:
        """The text of each list of ids; bytes that are no UTF-8 become U+FFFD, as tiktoken does it.

        Raises:
            InvalidRequest: the vocabulary's file is not here or is damaged, or does not have one of the ids.
        """
        async with self._reading:
            if self._encoding is None:
                self._encoding = await asyncio.to_thread(self._read)
        try:
            return [self._encoding.decode(list(ids)) for ids in inputs]
        except KeyError as unknown:
            raise InvalidRequest(
                f"{param} holds the token id {unknown.args[0]}, which {self._file.name} does not have; send text.",
                param=param,
                reason="UNKNOWN_TOKEN_ID",
            ) from None

    def _read(self) -> Encoding:
        folder = self._directory
        names = self._file.file_names
        path = next((folder / name for name in names if (folder / name).is_file()), None) if folder else None
        if path is None:
            raise self._unusable("is not on this machine")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self._file.sha256:
            raise self._unusable("is damaged: its hash is not the published one")
        try:
            return self._parse(data)
        except (ValueError, binascii.Error):
            raise self._unusable("cannot be read") from None

    def _parse(self, data: bytes) -> Encoding:
        # Imported at the first need: most gateways never see a token id.
        from tiktoken import Encoding

        ranks = {}
        for line in data.splitlines():
            piece, _, rank = line.partition(b" ")
            if piece:
                ranks[base64.b64decode(piece, validate=True)] = int(rank)
        special = {text: token for token, text in self._file.special}
        # The pattern cuts text before encoding; nothing is encoded here.
        return Encoding(self._file.name, pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens=special)

    def _unusable(self, state: str) -> MeshError:
        return InvalidRequest(
            f"Token ids are read with OpenAI's vocabulary {self._file.name}, whose file {state}. Send text instead of "
            f"token ids, or have the operator put {self._file.file_names[0]} into GATEWAY_VOCABULARY__DIRECTORY.",
            param="input",
            reason="VOCABULARY_UNAVAILABLE",
        )
