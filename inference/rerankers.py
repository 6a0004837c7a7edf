"""Which model reranks, and how: a cross-encoder, a language model, or late interaction over an encoder's token vectors.

With no model named, the default cross-encoder is used where it is on this machine or the hub can be asked; otherwise
the default embedding model, which comes as a package, scores by late interaction. Weaker, and there at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from inference import hub
from inference.card import ModelKind
from inference.engines import Head
from inference.engines.choice import EnginePlan, Job, Report, open_engine
from inference.golden import require_sense
from inference.loading import LoadedModel, find, open_model, require_matching
from inference.models import (
    DEFAULT_CROSS_ENCODER,
    DEFAULT_EMBEDDING_MODEL,
    PINNED_REVISIONS,
    ModelRequest,
    ResolvedModel,
)
from inference.profiles import Overrides, RerankingProfile, reranking_profile
from inference.prompted import PromptTokenizer
from inference.runner import short_name
from mesh.errors import ModelUnusable
from mesh.telemetry import get_logger

log = get_logger(__name__)


class Method(Enum):
    """How a document is scored."""

    LATE_INTERACTION = "late-interaction"
    """Each token of the query finds its closest token of the document; documents are encoded by themselves."""
    CROSS_ENCODER = "cross-encoder"
    """The model reads query and document together and returns one score."""
    GENERATIVE = "generative"
    """A language model is asked whether the document answers the query; the score is how much rather it says yes."""


_ABSENT = frozenset({"MODEL_NOT_FOUND", "HUB_UNREACHABLE"})
_KINDS = {
    Method.LATE_INTERACTION: ModelKind.EMBEDDING,
    Method.CROSS_ENCODER: ModelKind.CROSS_ENCODER,
    Method.GENERATIVE: ModelKind.GENERATIVE,
}
_DEFAULTS = {Method.LATE_INTERACTION: DEFAULT_EMBEDDING_MODEL, Method.CROSS_ENCODER: DEFAULT_CROSS_ENCODER}


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankerRequest:
    """Which reranker an operator asked for.

    Attributes:
        name: a directory, a hub name, or empty for the default.
        method: None decides by the model: the default embedding model interacts late, any other is what its
            architecture says, a cross-encoder or a language model.
        overrides: what the operator states about the model itself.
    """

    name: str = ""
    method: Method | None = None
    revision: str = ""
    sha256: str = ""
    setting: str = "the model setting"
    served_as: str = ""
    overrides: Overrides = field(default_factory=Overrides)

    def model(self, method: Method | None) -> ModelRequest:
        """The request for the model that ``method`` needs; None takes a cross-encoder or a language model."""
        name = self.name or _DEFAULTS[method or Method.CROSS_ENCODER]
        # An encoder that reranks gets a name of its own: it may be served as an embedding model beside it.
        late = f"{method.value}/{short_name(name.rstrip('/'))}" if method is Method.LATE_INTERACTION else ""
        return ModelRequest(
            name=name,
            kind=_KINDS[method] if method is not None else ModelKind.RERANKER,
            revision=self.revision,
            sha256=self.sha256,
            setting=self.setting,
            served_as=self.served_as or late,
            overrides=self.overrides,
        )


@dataclass(frozen=True, slots=True)
class FoundReranker:
    """A reranker whose files are there, and how it scores."""

    model: ResolvedModel
    method: Method


@dataclass(frozen=True, slots=True)
class LoadedReranker:
    """A reranker ready to run.

    Attributes:
        profile: how a language model is asked; None for the other methods.
        source: where that is written; empty for the other methods.
    """

    loaded: LoadedModel
    method: Method
    profile: RerankingProfile | None = None
    source: str = ""


def load_reranker(
    request: RerankerRequest, plan: EnginePlan, *, max_tokens: int = 0, report: Report = log.info, anew: bool = False
) -> LoadedReranker:
    """Find and load the reranker. Blocks as ``loading.load`` does; without a hub it waits for at most a second or two.

    Raises:
        ModelUnusable: as ``loading.load``; or a language model without a profile, or one that fails its questions.
    """
    found = find_reranker(request, max_tokens=max_tokens, report=report)
    if found.method is Method.GENERATIVE:
        return _load_generative(found.model, request, plan, report, anew=anew)
    head = Head.TOKENS if found.method is Method.LATE_INTERACTION else Head.LOGITS
    return LoadedReranker(open_model(found.model, plan, head=head, report=report, anew=anew), found.method)


def find_reranker(request: RerankerRequest, *, max_tokens: int = 0, report: Report = log.info) -> FoundReranker:
    """The first part of ``load_reranker``: the model's files, checked, and how it scores; nothing loaded."""

    def found(request: RerankerRequest, method: Method | None) -> FoundReranker:
        model = find(request.model(method), max_tokens=max_tokens, report=report)
        generates = model.card.kind is ModelKind.GENERATIVE
        return FoundReranker(model, Method.GENERATIVE if generates else method or Method.CROSS_ENCODER)

    if request.method is not None:
        return found(request, request.method)
    if request.name:
        return found(request, Method.LATE_INTERACTION if request.name == DEFAULT_EMBEDDING_MODEL else None)
    if _default_in_reach(request):
        try:
            return found(request, Method.CROSS_ENCODER)
        except ModelUnusable as error:
            if error.reason not in _ABSENT:
                raise
    report(
        f"{DEFAULT_CROSS_ENCODER} is not on this machine and no hub is in reach: reranking by late interaction over "
        f"{DEFAULT_EMBEDDING_MODEL}. Set {request.setting} to a cross-encoder's directory for better ranking."
    )
    # Revision and hash were stated for the cross-encoder.
    return found(replace(request, revision="", sha256=""), Method.LATE_INTERACTION)


def _load_generative(
    model: ResolvedModel, request: RerankerRequest, plan: EnginePlan, report: Report, *, anew: bool
) -> LoadedReranker:
    setting = f"{request.setting}_PROFILE" if request.setting.isupper() else "a profile setting"
    profile, source = reranking_profile(request.name, request.overrides, setting=setting)
    tokenizer = PromptTokenizer.load_prompted(
        model.path, profile, name=model.name, max_tokens=model.card.max_input_tokens
    )
    require_matching(model, tokenizer)
    # What the profile leaves of the model's length is what Info tells.
    model = replace(model, card=replace(model.card, max_input_tokens=tokenizer.max_tokens))
    job = Job(model, tokenizer, Head.LOGITS, tokenizer.answers)
    engine, verdict = open_engine(job, plan, report, anew=anew)
    loaded = LoadedModel(model=model, tokenizer=tokenizer, engine=engine, head=Head.LOGITS, verdict=verdict)
    require_sense(loaded, profile, source=source)
    report(
        f"{model.name}: right on all {len(profile.golden) + len(profile.scores)} questions of its profile ({source})"
    )
    return LoadedReranker(loaded, Method.GENERATIVE, profile, source)


def _default_in_reach(request: RerankerRequest) -> bool:
    revision = request.revision or PINNED_REVISIONS[DEFAULT_CROSS_ENCODER]
    return hub.cached_snapshot(DEFAULT_CROSS_ENCODER, revision) is not None or hub.in_reach()
