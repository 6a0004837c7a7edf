"""What OpenAI's two ways to ask for text have in common: sampling, and the parameters that are not answered for.

A parameter that would change the answer is refused by name, never ignored; one that changes nothing is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from gateway.bodies import ModelName, Texts, VendorBody
from mesh.errors import InvalidRequest
from mesh.generation import MAX_CHOICES, Sampling, Timings, Usage
from mesh.generation.bounds import MAX_STOP_CHARACTERS, MAX_STOPS, MAX_TOP_K

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class StreamOptions(VendorBody):
    """What a stream holds besides text."""

    include_usage: bool | None = None


class GenerationBody(VendorBody):
    """The fields that chat and completion requests share, some of vLLM's among them, which its clients send too."""

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
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        None, description=f"a whole number from 1 to {MAX_CHOICES}"
    )
    logit_bias: Any = None
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] | None = Field(None, description="a whole number from 1")
    min_p: Share | None = Field(None, description="a number from 0 to 1")
    repetition_penalty: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] | None = Field(
        None, description="a number above 0, up to 2"
    )
    # Known only to be refused. Keeping whatever else comes would let a body of a million fields cost seconds.
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    min_tokens: Any = None
    ignore_eos: Any = None
    stop_token_ids: Any = None
    bad_words: Any = None
    use_beam_search: Any = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that tells the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def sampling_of(body: GenerationBody, max_tokens: int | None, top_logprobs: int | None) -> Sampling:
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
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        n=body.n,
        top_logprobs=top_logprobs,
    )


def _stops(given: str | list[str] | None) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else tuple(given or ())
    if len(stops) > MAX_STOPS or not all(1 <= len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        raise InvalidRequest(
            f"stop takes at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters each.", param="stop"
        )
    return stops


Harmless = Mapping[str, tuple[Any, ...]]
"""Parameters that are not answered for, each with the values that ask for nothing."""

HARMLESS: Harmless = {
    "logit_bias": (None, {}),  # names tokens by the ids of a vocabulary that no other model has
    # vLLM's own, of which some would change the answer beyond recognition.
    "structured_outputs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "min_tokens": (None, 0),
    "ignore_eos": (None, False),
    "stop_token_ids": (None, []),
    "bad_words": (None, []),
    "use_beam_search": (None, False),
}
"""Those of chats and of completions alike."""


def refuse_unsupported(body: VendorBody, harmless: Harmless) -> None:
    """Refuse a parameter that asks for what is not done here.

    Raises:
        InvalidRequest: with the reason UNSUPPORTED_PARAMETER, naming it.
    """
    for name, values in harmless.items():
        given = getattr(body, name)
        # 0 == False in Python, and a number is not a switch: types count.
        if not any(type(given) is type(value) and given == value for value in values):
            raise unsupported(f"The parameter {name} is not supported here; leave it out.", name)


def unsupported(message: str, param: str) -> InvalidRequest:
    """The refusal of something that a vendor's API has, and that is not done here."""
    return InvalidRequest(message, param=param, reason="UNSUPPORTED_PARAMETER")


def unknown_part(kind: object, where: str, known: str) -> InvalidRequest:
    """The refusal of a part of a message whose ``type`` is none of the ``known`` ones."""
    named = kind[:32] if isinstance(kind, str) else "of no type"
    return unsupported(f"{where} is {named}; there are {known} here.", where)


def usage_document(usage: Usage | None) -> dict[str, Any] | None:
    """OpenAI's usage object; null where the engine did not count."""
    if usage is None:
        return None
    document: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    if usage.cached_prompt_tokens is not None:
        document["prompt_tokens_details"] = {"cached_tokens": usage.cached_prompt_tokens}
    if usage.reasoning_tokens is not None:
        document["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return document


def llm_timings_ms(timings: Timings) -> dict[str, float]:
    """A worker's timings as ``Server-Timing`` shows them."""
    return {
        "worker": timings.total_us / 1000,
        "queue": timings.queue_us / 1000,
        "first_token": timings.first_token_us / 1000,
    }
