"""Which model reranks, and how: a cross-encoder, or late interaction over an encoder's token vectors.

With no model named, the default cross-encoder is used where it is on this machine or the hub can be asked; otherwise
the default embedding model, which comes as a package, scores by late interaction. Weaker, and there at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from inference import hub
from inference.card import ModelKind
from inference.engines import Head
from inference.engines.choice import EnginePlan, Report
from inference.loading import LoadedModel, load
from inference.models import DEFAULT_CROSS_ENCODER, DEFAULT_EMBEDDING_MODEL, PINNED_REVISIONS, ModelRequest
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


_ABSENT = frozenset({"MODEL_NOT_FOUND", "HUB_UNREACHABLE"})
_HEADS = {Method.LATE_INTERACTION: Head.TOKENS, Method.CROSS_ENCODER: Head.LOGITS}
_KINDS = {Method.LATE_INTERACTION: ModelKind.EMBEDDING, Method.CROSS_ENCODER: ModelKind.CROSS_ENCODER}
_DEFAULTS = {Method.LATE_INTERACTION: DEFAULT_EMBEDDING_MODEL, Method.CROSS_ENCODER: DEFAULT_CROSS_ENCODER}


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankerRequest:
    """Which reranker an operator asked for.

    Attributes:
        name: a directory, a hub name, or empty for the default.
        method: None decides by the name: the default embedding model interacts late, any other is a cross-encoder.
    """

    name: str = ""
    method: Method | None = None
    revision: str = ""
    sha256: str = ""
    setting: str = "the model setting"
    served_as: str = ""

    def model(self, method: Method) -> ModelRequest:
        """The request for the model that ``method`` needs."""
        name = self.name or _DEFAULTS[method]
        # An encoder that reranks gets a name of its own: it may be served as an embedding model beside it.
        late = f"{method.value}/{short_name(name.rstrip('/'))}" if method is Method.LATE_INTERACTION else ""
        return ModelRequest(
            name=name,
            kind=_KINDS[method],
            revision=self.revision,
            sha256=self.sha256,
            setting=self.setting,
            served_as=self.served_as or late,
        )


def load_reranker(
    request: RerankerRequest, plan: EnginePlan, *, max_tokens: int = 0, report: Report = log.info, anew: bool = False
) -> tuple[LoadedModel, Method]:
    """Find and load the reranker. Blocks as ``loading.load`` does; without a hub it waits for at most a second or two.

    Raises:
        ModelUnusable: as ``loading.load``.
    """

    def loaded(method: Method) -> tuple[LoadedModel, Method]:
        model = request.model(method)
        return load(model, plan, head=_HEADS[method], max_tokens=max_tokens, report=report, anew=anew), method

    if request.method is not None:
        return loaded(request.method)
    if request.name:
        return loaded(Method.LATE_INTERACTION if request.name == DEFAULT_EMBEDDING_MODEL else Method.CROSS_ENCODER)
    if _default_in_reach(request):
        try:
            return loaded(Method.CROSS_ENCODER)
        except ModelUnusable as error:
            if error.reason not in _ABSENT:
                raise
    report(
        f"{DEFAULT_CROSS_ENCODER} is not on this machine and no hub is in reach: reranking by late interaction over "
        f"{DEFAULT_EMBEDDING_MODEL}. Set {request.setting} to a cross-encoder's directory for better ranking."
    )
    # Revision and hash were stated for the cross-encoder.
    request = replace(request, revision="", sha256="")
    return loaded(Method.LATE_INTERACTION)


def _default_in_reach(request: RerankerRequest) -> bool:
    revision = request.revision or PINNED_REVISIONS[DEFAULT_CROSS_ENCODER]
    return hub.cached_snapshot(DEFAULT_CROSS_ENCODER, revision) is not None or hub.in_reach()
