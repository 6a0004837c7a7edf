"""The model that a job is done with: found once, and the same until the end."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mesh.bulk.failures import BulkFailure
from mesh.bulk.sending import Client
from mesh.clients.embedding import EmbeddingInfo, EmbeddingLimits, EmbeddingModel
from mesh.deadline import Deadline

_INFO_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What makes two vectors comparable.

    Attributes:
        dimensions: of the vectors asked for.
    """

    name: str
    revision: str
    dimensions: int

    def facts(self) -> dict[str, str | int]:
        """As JSON."""
        return asdict(self)


class ServedModel:
    """Asks the worker what it serves.

    Args:
        client: the worker.
        wanted: a name or an alias; empty means the only model.
        dimensions: of the vectors asked for; None means the model's own.
        expected: what the job began with; None takes what is found first.

    Attributes:
        facts, engine, limits, max_input_tokens: set by the first ``verify``.
    """

    facts: ModelFacts
    engine: str
    limits: EmbeddingLimits
    max_input_tokens: int

    def __init__(self, client: Client, wanted: str, dimensions: int | None, expected: ModelFacts | None) -> None:
        self._client = client
        self._wanted = wanted
        self._dimensions = dimensions
        self._expected = expected

    async def verify(self) -> None:
        """Find the model.

        Raises:
            BulkFailure: it is not served, or not the one that the job began with.
            MeshError: the worker does not answer.
        """
        info = await self._client.info(deadline=Deadline.after(_INFO_SECONDS))
        model = self._find(info)
        found = ModelFacts(name=model.name, revision=model.revision, dimensions=self._dimensions or model.dimensions)
        if self._expected is not None and found != self._expected:
            raise BulkFailure(
                f"The worker serves {_said(found)}, and this job began with {_said(self._expected)}. Start the worker "
                "with that model and run the same command again, or begin anew with --restart."
            )
        self._expected = self.facts = found
        self.engine = f"{model.engine} {model.precision}".strip()
        self.limits, self.max_input_tokens = info.limits, model.max_input_tokens

    def _find(self, info: EmbeddingInfo) -> EmbeddingModel:
        for model in info.models:
            if not self._wanted or self._wanted in (model.name, *model.aliases):
                return model
        served = ", ".join(model.name for model in info.models) or "none"
        raise BulkFailure(f"The worker does not serve {self._wanted or 'any model'}. Served: {served}.")


def _said(facts: ModelFacts) -> str:
    return f"{facts.name} ({facts.revision or 'no revision'}, {facts.dimensions} dimensions)"
