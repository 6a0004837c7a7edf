"""A Hugging Face model on this machine: found, its files checked, its prompts counted. What an engine is started on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from llm_service.checkpoint import Checkpoint, card_sentence, inspect
from llm_service.engines import Served
from llm_service.generation import Generation, Message, Role, Sampling
from llm_service.meter import PromptMeter
from llm_service.models import Located, locate
from llm_service.settings import LlmSettings
from mesh.errors import Internal, WrongState


@dataclass(frozen=True)
class LocalModel:
    """A model that an engine can be started on. Made by ``find``."""

    located: Located
    checkpoint: Checkpoint
    meter: PromptMeter

    @classmethod
    async def find(cls, settings: LlmSettings) -> LocalModel:
        """The model that the settings name. Raises ModelUnusable."""
        located = await asyncio.to_thread(locate, settings.model, settings.model_revision, demo_path=settings.demo_path)
        checkpoint = await asyncio.to_thread(inspect, located.path)
        context = settings.context_tokens or checkpoint.context_tokens
        meter = await asyncio.to_thread(PromptMeter, located.path / "tokenizer.json", context)
        return cls(located, checkpoint, meter)

    @property
    def served(self) -> Served:
        """The model as callers are told of it."""
        located = self.located
        return Served(
            name=located.name,
            source=located.source,
            revision=located.revision,
            context_tokens=self.meter.context_tokens,
            description=card_sentence(located.path),
        )

    async def fit(self, request: Generation, *, max_output_tokens: int) -> Generation:
        """The request with its prompt counted and ``max_tokens`` set to what the context holds.

        Raises:
            InvalidRequest: reason CONTEXT_OVERFLOW.
            WrongState: a chat for a model without a chat template.
        """
        self.require_template(request)
        return await self.meter.fit(request, max_output_tokens=max_output_tokens)

    def require_template(self, request: Generation) -> None:
        """Raise WrongState for a chat where the model has no chat template."""
        if request.prompt is None and not self.checkpoint.has_chat_template:
            raise WrongState(
                "This model has no chat template, so it answers no chats; send a prompt to continue instead.",
                reason="NO_CHAT_TEMPLATE",
                param="messages",
            )

    def proof(self) -> Generation:
        """The cheapest request that makes an engine do real work with it."""
        return _chat("a") if self.checkpoint.has_chat_template else _prompt("a")

    async def calibrate(self, write: Callable[[Generation], Awaitable[int]]) -> None:
        """Learn what the chat template adds. ``write`` returns the prompt tokens that the engine counted."""
        if not self.checkpoint.has_chat_template:
            return
        samples = []
        for request in (_chat("a"), _chat("a", "b", "a")):
            with suppress(Internal):  # a template may refuse a made-up chat
                samples.append((request, await write(request)))
        if samples:
            self.meter.calibrate(samples)


def _chat(*texts: str) -> Generation:
    roles = (Role.USER, Role.ASSISTANT)
    messages = tuple(Message(roles[index % 2], text) for index, text in enumerate(texts))
    return Generation(messages=messages, sampling=Sampling(temperature=0.0, max_tokens=1))


def _prompt(text: str) -> Generation:
    return Generation(prompt=text, sampling=Sampling(temperature=0.0, max_tokens=1))
