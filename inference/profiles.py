"""What is known of a model beyond its weights: its prompts, its pooling, how it is asked to rerank.

Four sources, each above the one before it: the families in ``families.toml`` (what the makers publish and the files
often leave out), the model's own files (`inference.card`), a profile file of the operator, single settings.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from inference.card import ModelCard, Pooling
from mesh.errors import ModelUnusable

QUERY, DOCUMENT, INSTRUCTION = "{query}", "{document}", "{instruction}"
_FAMILIES = Path(__file__).with_name("families.toml")
_SHOWN_ERRORS = 3


class _Part(BaseModel):
    """A part of a profile. A key that is not known is an error: a misspelt prefix that is ignored ruins an index."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EmbeddingProfile(_Part):
    """How texts become vectors; what is left out stays as the model's own files say.

    Attributes:
        prompts: prefix by name. An empty one takes the model's own of that name away.
        default_prompt: name of the prompt for inputs of no stated type.
        pooling: how token states become one vector.
        normalize: whether vectors are scaled to length 1 unless a request says otherwise.
        matryoshka_dimensions: dimensions the model was trained to be cut to.
    """

    prompts: dict[str, str] = Field(default_factory=dict)
    default_prompt: str | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    matryoshka_dimensions: tuple[Annotated[int, Field(ge=1)], ...] | None = None


class GoldenPair(_Part):
    """A question that the model must get right: ``relevant`` scores above ``irrelevant`` by at least ``margin``."""

    query: str = Field(min_length=1)
    relevant: str = Field(min_length=1)
    irrelevant: str = Field(min_length=1)
    margin: float = Field(gt=0, le=1)


class GoldenScore(_Part):
    """A score in [0, 1] that is known of the model, and how far off it may be."""

    query: str = Field(min_length=1)
    document: str = Field(min_length=1)
    score: float = Field(ge=0, le=1)
    tolerance: float = Field(0.05, gt=0, le=1)


class RerankingProfile(_Part):
    """How a language model is asked whether a document answers a query.

    Attributes:
        template: pieces that are tokenized one by one and laid end to end. ``{query}`` and ``{document}`` stand in one
            piece each, the document last in its piece; such a piece is read as plain text, special tokens included.
        instruction: what ``{instruction}`` stands for.
        yes: the token whose logit is the score.
        no: the token whose logit is taken off it; empty takes nothing off.
        whole_tokens: what must be one token each, or the template belongs to another tokenizer.
        max_tokens: read at most so many; 0 means what the model reads.
        golden: questions of known order; at least one, or nonsense would be served.
        scores: questions of known score.
    """

    template: tuple[str, ...] = Field(min_length=1)
    instruction: str = ""
    yes: str = Field(min_length=1)
    no: str = ""
    whole_tokens: tuple[str, ...] = ()
    max_tokens: int = Field(0, ge=0)
    golden: tuple[GoldenPair, ...] = Field(min_length=1)
    scores: tuple[GoldenScore, ...] = ()

    @model_validator(mode="after")
    def _placed_once(self) -> Self:
        for name in (QUERY, DOCUMENT):
            if "".join(self.template).count(name) != 1:
                raise ValueError(f"template must hold {name} exactly once")
        (piece,) = (piece for piece in self.template if DOCUMENT in piece)
        if not piece.endswith(DOCUMENT):
            raise ValueError(f"{DOCUMENT} must end its piece of the template; put what follows into the next one")
        if INSTRUCTION in "".join(self.template) and not self.instruction:
            raise ValueError(f"template holds {INSTRUCTION}, and no instruction is given")
        return self


class Profile(_Part):
    """What a profile file holds: either part, or both."""

    embedding: EmbeddingProfile | None = None
    reranking: RerankingProfile | None = None


class Family(Profile):
    """Models of one maker that are used in the same way.

    Attributes:
        match: patterns (``e5-small*``) of the last part of a model's name, in lower case.
    """

    name: str
    match: tuple[str, ...] = Field(min_length=1)


class _Families(_Part):
    family: tuple[Family, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What an operator states about a model.

    Attributes:
        file: a profile file, TOML or JSON.
        prompts: prefixes by name, above all others.
        instruction: for a reranker whose template has one.
    """

    file: Path | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    instruction: str = ""


def family_of(name: str) -> Family | None:
    """The family of the model with this hub name or directory, or None."""
    short = name.rstrip("/").rpartition("/")[2].lower()
    for family in _families():
        if any(fnmatchcase(short, pattern) for pattern in family.match):
            return family
    return None


def read_profile(file: Path) -> Profile:
    """The profile in a TOML or JSON file.

    Raises:
        ModelUnusable: it is missing, cannot be read, or says something that no profile says.
    """
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ModelUnusable(
            f"The profile {file.name} cannot be read as {'JSON' if file.suffix == '.json' else 'TOML'}. "
            "Correct the path or the file.",
            reason="PROFILE_INVALID",
        ) from error
    return _validated(Profile, values, file.name)


def with_embedding_profile(card: ModelCard, name: str, overrides: Overrides) -> ModelCard:
    """The card as family, model, file and settings together state it.

    Args:
        card: as read from the model's own files.
        name: the hub name or directory, which tells the family.
        overrides: what the operator states.

    Raises:
        ModelUnusable: the file is no profile, or a default prompt is named that there is not.
    """
    family = family_of(name)
    if family is not None and family.embedding is not None:
        card = _below(card, family.embedding, f"family {family.name}")
    if overrides.file is not None:
        stated = read_profile(overrides.file).embedding
        if stated is not None:
            card = _above(card, stated, f"file {overrides.file.name}")
    if overrides.prompts:
        card = _above(card, EmbeddingProfile(prompts=dict(overrides.prompts)), "settings")
    if card.default_prompt and card.default_prompt not in card.prompts:
        # sentence-transformers names one also where it is empty; only an operator's can be a mistake.
        card = replace(card, default_prompt="")
    return card


def reranking_profile(name: str, overrides: Overrides, *, setting: str) -> tuple[RerankingProfile, str]:
    """How the language model ``name`` is asked to rerank, and where that is written.

    Raises:
        ModelUnusable: neither a family nor a file says.
    """
    family = family_of(name)
    found = (family.reranking, f"family {family.name}") if family is not None else (None, "")
    if overrides.file is not None:
        found = (read_profile(overrides.file).reranking or found[0], f"file {overrides.file.name}")
    profile, source = found
    if profile is None:
        raise ModelUnusable(
            f"{name} is a language model, and nothing says how it is asked to rerank. Write a profile with a "
            f"[reranking] part, as docs/models.md shows, and name it in {setting}.",
            reason="PROFILE_MISSING",
        )
    if overrides.instruction:
        return profile.model_copy(update={"instruction": overrides.instruction}), f"{source}, settings"
    return profile, source


def _below(card: ModelCard, profile: EmbeddingProfile, source: str) -> ModelCard:
    """``card`` with what it does not state itself."""
    changes: dict[str, Any] = {}
    if profile.prompts and not card.prompts:
        changes["prompts"] = profile.prompts
    if profile.pooling is not None and not card.states_modules:
        changes["pooling"] = profile.pooling
    if profile.matryoshka_dimensions and not card.matryoshka_dimensions:
        changes["matryoshka_dimensions"] = _shorter(profile.matryoshka_dimensions, card)
    return replace(card, **changes, profile=f"{card.profile}, {source}") if changes else card


def _above(card: ModelCard, profile: EmbeddingProfile, source: str) -> ModelCard:
    """``card`` with everything that ``profile`` states."""
    changes = profile.model_dump(exclude_none=True, exclude={"prompts"})
    if profile.matryoshka_dimensions is not None:
        changes["matryoshka_dimensions"] = _shorter(profile.matryoshka_dimensions, card)
    prompts = {**card.prompts, **profile.prompts}
    changes["prompts"] = {name: prefix for name, prefix in prompts.items() if prefix}
    if profile.default_prompt and profile.default_prompt not in changes["prompts"]:
        there = ", ".join(changes["prompts"]) or "none"
        raise ModelUnusable(
            f"The profile's default prompt {profile.default_prompt!r} is not among its prompts. There are: {there}.",
            reason="PROFILE_INVALID",
        )
    return replace(card, **changes, profile=f"{card.profile}, {source}")


def _shorter(dimensions: tuple[int, ...], card: ModelCard) -> tuple[int, ...]:
    return tuple(each for each in dimensions if each < card.dimensions)


@cache
def _families() -> tuple[Family, ...]:
    return _validated(_Families, tomllib.loads(_FAMILIES.read_text(encoding="utf-8")), _FAMILIES.name).family


M = TypeVar("M", bound=BaseModel)


def _validated(model: type[M], values: object, source: str) -> M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        said = error.errors(include_url=False, include_input=False, include_context=False)[:_SHOWN_ERRORS]
        where = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'the file'}: {each['msg']}" for each in said)
        raise ModelUnusable(
            f"The profile {source} is wrong: {where}. docs/models.md shows what a profile holds.",
            reason="PROFILE_INVALID",
        ) from error
