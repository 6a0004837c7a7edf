"""What is asked of a language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from mesh.context import Priority


class Role(Enum):
    """Who speaks in a chat."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class Image:
    """A picture, as a file of ``media_type``. ``detail`` is auto, low or high; empty leaves the engine's default."""

    data: bytes = field(repr=False)
    media_type: str
    detail: str = ""


Part = str | Image
"""A text or an image of a message."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant made; ``arguments`` are JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat.

    Attributes:
        content: its text; empty where ``parts`` or ``tool_calls`` stand in its place.
        name: the speaker's, where a template uses it.
        parts: texts and images in their order.
        tool_calls: what the assistant called.
        tool_call_id: the call that this is the result of, with `Role.TOOL`.
    """

    role: Role
    content: str = ""
    name: str = ""
    parts: tuple[Part, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""

    @property
    def text(self) -> str:
        """The content, or the texts among the parts, each on a line of its own."""
        return self.content or "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[Image, ...]:
        """The images among the parts."""
        return tuple(part for part in self.parts if isinstance(part, Image))


@dataclass(frozen=True, slots=True)
class Tool:
    """What the model may call. ``parameters`` is a JSON schema as JSON text, empty where no arguments are taken."""

    name: str
    description: str = ""
    parameters: str = ""
    strict: bool | None = None


class ToolChoiceMode(Enum):
    """Whether the model has to call a tool."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"
    NAMED = "named"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """``name`` goes with NAMED alone."""

    mode: ToolChoiceMode
    name: str = ""


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The answer is JSON: of ``schema``, which is JSON text, or any object where it is None."""

    schema: str | None = None
    name: str = ""
    description: str = ""
    strict: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and how many answers are written; None leaves the engine's default.

    The bounds are the ones that ``llm.v1.Sampling`` states; `check` holds a request to them.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    n: int | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What to write: the answer to ``messages``, or the continuation of ``prompt`` as it stands; one of them.

    ``tools``, ``tool_choice`` and ``parallel_tool_calls`` go with messages alone. ``priority`` None means the lane of
    the request that is being served. ``prompt_tokens`` is never sent: the worker notes there what it counted,
    0 where nobody did.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    model: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    priority: Priority | None = None
    prompt_tokens: int = 0

    @property
    def texts(self) -> list[str]:
        """All that the model is to read, as far as it is text; a tool as about the JSON that templates make of it."""
        if self.prompt is not None:
            return [self.prompt]
        calls = (call for message in self.messages for call in message.tool_calls)
        return [
            *(message.text for message in self.messages),
            *(f'{{"name": "{call.name}", "arguments": {call.arguments}}}' for call in calls),
            *(
                f'{{"type": "function", "function": {{"name": "{tool.name}", "description": "{tool.description}", '
                f'"parameters": {tool.parameters or "{}"}}}}}'
                for tool in self.tools
            ),
        ]

    @property
    def choices(self) -> int:
        """How many answers are written."""
        return self.sampling.n or 1
