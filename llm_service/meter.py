"""Counts a prompt's tokens before an engine sees it: what cannot fit is refused, and what fits gets the room left."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from llm_service.generation import Generation
from mesh.errors import InvalidRequest, ModelUnusable

_QUICK_CHARACTERS = 2_000
"""So many are counted in a millisecond or two: not worth a thread."""
_BATCH_CHARACTERS = 16_384
_SLICE = re.compile(rf".{{1,{_BATCH_CHARACTERS}}}(?=\s|$)|.{{1,{_BATCH_CHARACTERS}}}", re.DOTALL)
"""Cuts a text before white space where there is any: there most tokenizers cut as well."""


class PromptMeter:
    """Measures requests against a model's context.

    The chat template belongs to the model and runs in the engine alone: templates are programs, and this process holds
    the mesh's side of the fence. What a template adds is therefore measured at warm-up, by ``calibrate``.
    """

    def __init__(self, tokenizer_path: Path, context_tokens: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_path))
        except Exception:  # the library raises bare Exception
            raise ModelUnusable(
                "The model's tokenizer.json cannot be read; fetch it again.", reason="MODEL_DAMAGED"
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._context = context_tokens
        # No token stands for more characters than this, so a text of more than context × longest cannot fit.
        self._longest = max(map(len, self._tokenizer.get_vocab()), default=1)
        self._per_chat = 0
        self._per_message = 0

    @property
    def context_tokens(self) -> int:
        """Longest prompt and answer together; 0 when it is not known."""
        return self._context

    def calibrate(self, samples: Sequence[tuple[Generation, int]]) -> None:
        """Learn what the template adds from chats of different lengths and the prompt tokens the engine counted."""
        points = [(len(request.messages), counted - self._count(request.texts)) for request, counted in samples]
        (fewest, low), (most, high) = min(points), max(points)
        self._per_message = max(0, -(-(high - low) // (most - fewest))) if most > fewest else 0
        self._per_chat = max(0, low - fewest * self._per_message)

    async def fit(self, request: Generation, *, max_output_tokens: int) -> Generation:
        """The request with its prompt counted, and ``max_tokens`` set to what was asked and the context still holds.

        Raises:
            InvalidRequest: the prompt leaves no room for an answer; reason CONTEXT_OVERFLOW.
        """
        wanted = request.sampling.max_tokens or max_output_tokens
        counted = await self._counted(request, enough=self._context)
        if self._context:
            room = self._context - counted
            if room < 1:
                raise self._overflow(request)
            wanted = min(wanted, room)
        return replace(request, prompt_tokens=counted, sampling=replace(request.sampling, max_tokens=wanted))

    async def count(self, request: Generation) -> int:
        """Tokens of the prompt, what the chat template adds included; images are not counted.

        Exact for texts alone. What a template makes of tools and of calls it does not know: their JSON is counted.

        Raises:
            InvalidRequest: as `require_countable`.
        """
        return await self._counted(request)

    def require_countable(self, request: Generation) -> None:
        """Raise InvalidRequest, reason CONTEXT_OVERFLOW, for so many characters that they cannot fit."""
        if self._context and sum(map(len, request.texts)) > self._context * self._longest:
            raise self._overflow(request)

    async def _counted(self, request: Generation, *, enough: int = 0) -> int:
        """Tokens of the prompt; counted no further than ``enough`` where that is not 0."""
        self.require_countable(request)
        # A raw prompt gets the tokenizer's own marks; in a chat they are part of what the template adds.
        raw = request.prompt is not None
        counted = self._tokenizer.num_special_tokens_to_add(is_pair=False) if raw else self._per_chat
        counted += self._per_message * len(request.messages)
        for batch in _batches(request.texts):
            if sum(map(len, batch)) <= _QUICK_CHARACTERS:
                counted += self._count(batch)
            else:
                counted += await asyncio.to_thread(self._count, batch)
            if enough and counted >= enough:
                break
        return counted

    def _count(self, texts: list[str]) -> int:
        # Always a batch: encoding a single text keeps all other threads from running meanwhile.
        return sum(len(each.ids) for each in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))

    def _overflow(self, request: Generation) -> InvalidRequest:
        return InvalidRequest(
            f"The prompt does not fit the model's context of {self._context} tokens; shorten it or send less.",
            reason="CONTEXT_OVERFLOW",
            param="prompt" if request.prompt is not None else "messages",
        )


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in batches of bounded length, long ones in slices."""
    batch: list[str] = []
    room = _BATCH_CHARACTERS
    for text in texts:
        for found in _SLICE.finditer(text):
            piece = found.group()
            if len(piece) > room:
                yield batch
                batch, room = [], _BATCH_CHARACTERS
            batch.append(piece)
            room -= len(piece)
    yield batch
