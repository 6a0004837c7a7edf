"""Counts a prompt's tokens before an engine sees it: what cannot fit is refused, and what fits gets the room left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from llm_service.generation import Generation
from mesh.errors import InvalidRequest, ModelUnusable

_QUICK_CHARACTERS = 8_000


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
        points = [
            (len(request.messages), counted - sum(self._count(message.content) for message in request.messages))
            for request, counted in samples
        ]
        (fewest, low), (most, high) = min(points), max(points)
        self._per_message = max(0, -(-(high - low) // (most - fewest))) if most > fewest else 0
        self._per_chat = max(0, low - fewest * self._per_message)

    async def fit(self, request: Generation, *, max_output_tokens: int) -> Generation:
        """The request with ``max_tokens`` set to what was asked and the context still holds.

        Raises:
            InvalidRequest: the prompt leaves no room for an answer; reason CONTEXT_OVERFLOW.
        """
        wanted = request.sampling.max_tokens or max_output_tokens
        counted = await self.count(request)
        if self._context:
            if counted >= self._context:
                raise self._overflow(request)
            wanted = min(wanted, self._context - counted)
        return replace(request, sampling=replace(request.sampling, max_tokens=wanted), prompt_tokens=counted)

    async def count(self, request: Generation) -> int:
        """Tokens of the prompt, with what the template adds to a chat.

        Raises:
            InvalidRequest: it cannot fit however it is counted; reason CONTEXT_OVERFLOW.
        """
        raw = request.prompt is not None
        texts = [request.prompt or ""] if raw else [message.content for message in request.messages]
        characters = sum(map(len, texts))
        if self._context and characters > self._context * self._longest:
            raise self._overflow(request)

        def count() -> int:
            # A raw prompt gets the tokenizer's own marks; in a chat they are part of what the template adds.
            return sum(self._count(text, special=raw) for text in texts)

        counted = count() if characters <= _QUICK_CHARACTERS else await asyncio.to_thread(count)
        return counted if raw else counted + self._per_chat + self._per_message * len(request.messages)

    def _count(self, text: str, *, special: bool = False) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def _overflow(self, request: Generation) -> InvalidRequest:
        return InvalidRequest(
            f"The prompt does not fit the model's context of {self._context} tokens; shorten it or send less.",
            reason="CONTEXT_OVERFLOW",
            param="prompt" if request.prompt is not None else "messages",
        )
