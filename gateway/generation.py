"""What OpenAI's two ways to ask for text have in common: sampling, and the parameters that are not answered for yet.

A parameter that would change the answer is refused by name, never ignored; one that changes nothing is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field

from gateway.bodies import ModelName, Texts, VendorBody
from mesh.clients.llm import LLMTimings, LLMUsage, Sampling
from mesh.errors import InvalidRequest

_MAX_STOPS = 4
_MAX_STOP_CHARACTERS = 256

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class StreamOptions(BaseModel):
    """What a stream holds besides text."""

    include_usage: bool | None = None


class GenerationBody(VendorBody):
    """The fields that chat and completion requests share."""

    model: ModelName = Field("", description="a served model or an alias; left out, the default one")
    stream: bool | None = Field(None, description="true or false")
    stream_options: StreamOptions | None = Field(None, description='an object such as {"include_usage": true}')
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        None, description="a number from 0 to 2"
    )
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="a number above 0, up to 1"
    )
    max_tokens: Count | None = Field(None, description="a whole number from 1")
    stop: str | Texts | None = Field(None, description="a text, or a list of at most 4")
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = Field(None, description="a whole number")
    presence_penalty: Penalty | None = Field(None, description="a number from -2 to 2")
    frequency_penalty: Penalty | None = Field(None, description="a number from -2 to 2")
    n: Annotated[int, Field(ge=1)] | None = Field(None, description="1")
    logit_bias: Any = None
    logprobs: Any = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that tells the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def sampling_of(body: GenerationBody, max_tokens: int | None) -> Sampling:
    """The request's sampling.

    Raises:
        InvalidRequest: too many stop texts, or one that is empty or too long.
    """
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        max_tokens=max_tokens,
        stop=_stops(body.stop),
        seed=body.seed,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
    )


def _stops(given: str | list[str] | None) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else tuple(given or ())
    if len(stops) > _MAX_STOPS or not all(1 <= len(stop) <= _MAX_STOP_CHARACTERS for stop in stops):
        raise InvalidRequest(
            f"stop takes at most {_MAX_STOPS} texts of 1 to {_MAX_STOP_CHARACTERS} characters each.", param="stop"
        )
    return stops


Harmless = Mapping[str, tuple[Any, ...]]
"""Parameters that are not answered for, each with the values that ask for nothing."""

SHARED_HARMLESS: Harmless = {"n": (None, 1), "logit_bias": (None, {})}


def refuse_unsupported(body: GenerationBody, harmless: Harmless) -> None:
    """Refuse a parameter that asks for what is not done here.

    Raises:
        InvalidRequest: with the reason UNSUPPORTED_PARAMETER, naming it.
    """
    for name, values in {**SHARED_HARMLESS, **harmless}.items():
        given = getattr(body, name)
        # 0 == False in Python, and logprobs=0 is not logprobs=false in OpenAI's completions: types count.
        if not any(type(given) is type(value) and given == value for value in values):
            raise InvalidRequest(
                f"The parameter {name} is not supported here; leave it out.", param=name, reason="UNSUPPORTED_PARAMETER"
            )


def usage_document(usage: LLMUsage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def llm_timings_ms(timings: LLMTimings) -> dict[str, float]:
    """A worker's timings as ``Server-Timing`` shows them."""
    return {
        "worker": timings.total_us / 1000,
        "queue": timings.queue_us / 1000,
        "first_token": timings.first_token_us / 1000,
    }
