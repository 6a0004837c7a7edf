"""A model ready to run: files, tokenizer and engine put together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from inference.engines import Engine, Head
from inference.engines.choice import EnginePlan, Job, Report, Verdict, open_engine
from inference.models import ModelRequest, ResolvedModel, resolve
from inference.tokenizing import TextTokenizer
from mesh.errors import ModelUnusable
from mesh.telemetry import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything that is needed to run one model."""

    model: ResolvedModel
    tokenizer: TextTokenizer
    engine: Engine
    head: Head
    verdict: Verdict


def default_models_dir(environ: Mapping[str, str]) -> Path:
    """``$MESH_MODELS``, else ``$MESH_HOME/models``, else ``var/models`` below the working directory."""
    return Path(environ.get("MESH_MODELS") or Path(environ.get("MESH_HOME") or "var") / "models")


def load(  # noqa: PLR0913 - three of them are rarely given
    request: ModelRequest,
    plan: EnginePlan,
    *,
    head: Head | None = None,
    max_tokens: int = 0,
    report: Report = log.info,
    anew: bool = False,
) -> LoadedModel:
    """Find, check, and load a model. Blocks for seconds, for minutes where it has to be downloaded and measured.

    Args:
        request: which model.
        plan: which engine.
        head: what the engine returns; None means the model's own pooling.
        max_tokens: a tighter limit than the model's own; 0 means the model's.
        report: takes lines of progress.
        anew: measure the engines again, whatever is remembered.

    Raises:
        ModelUnusable: as ``models.resolve`` and ``engines.choice.open_engine``.
    """
    model = find(request, max_tokens=max_tokens, report=report)
    return open_model(model, plan, head=head, report=report, anew=anew)


def find(request: ModelRequest, *, max_tokens: int = 0, report: Report = log.info) -> ResolvedModel:
    """The first part of ``load``: the model's files, checked, nothing loaded."""
    # Its parallelism forks no process here; the variable only silences a warning about doing so.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    model = resolve(request)
    report(f"{model.name}: found ({model.source.value}, {model.revision[:19]})")
    if max_tokens:
        _refuse_longer_than_read(model, max_tokens, model.card.max_input_tokens)
        model = replace(model, card=replace(model.card, max_input_tokens=max_tokens))
    return model


def open_model(
    model: ResolvedModel, plan: EnginePlan, *, head: Head | None = None, report: Report = log.info, anew: bool = False
) -> LoadedModel:
    """The second part of ``load``: tokenizer and engine of a model that was found."""
    tokenizer = TextTokenizer.load(
        model.path, name=model.name, max_tokens=model.card.max_input_tokens, lower_case=model.card.lower_case
    )
    require_matching(model, tokenizer)
    chosen_head = head or Head(model.card.pooling.value)
    engine, verdict = open_engine(Job(model, tokenizer, chosen_head), plan, report, anew=anew)
    return LoadedModel(model=model, tokenizer=tokenizer, engine=engine, head=chosen_head, verdict=verdict)


def require_matching(model: ResolvedModel, tokenizer: TextTokenizer) -> None:
    """Raise ModelUnusable where the tokenizer knows tokens that the model does not."""
    if tokenizer.vocabulary > model.card.vocabulary:
        raise ModelUnusable(
            f"The tokenizer of {model.name} knows {tokenizer.vocabulary} tokens and the model {model.card.vocabulary}: "
            "they do not belong together. Fetch the model again.",
            reason="MODEL_DAMAGED",
        )


def _refuse_longer_than_read(model: ResolvedModel, wanted: int, limit: int) -> None:
    if wanted > limit:
        raise ModelUnusable(
            f"{model.name} reads {limit} tokens, and {wanted} are set as its longest input. Lower the setting.",
            reason="MODEL_WRONG_KIND",
        )
