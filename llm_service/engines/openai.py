"""Any OpenAI-compatible server that somebody else runs: vLLM, SGLang, TGI, Ollama, llama-server, a vendor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx
from prometheus_client.metrics_core import Metric

from llm_service.abilities import ALL_ABILITIES
from llm_service.engines import Served
from llm_service.engines.completions import count_tokens, http_client, input_of, options_of, refusal, stream
from llm_service.generation import EngineEvent, Generation
from llm_service.load import LoadWatch
from llm_service.models import DEMO
from llm_service.settings import LlmSettings
from mesh.errors import MeshError, ModelUnusable, Unavailable
from mesh.generation import EngineLoad
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

CONCURRENCY = 32
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
# Two silent beats and the pauses between them are less than the 10 s in which a lost engine has to be found.
BEAT_SECONDS = 3.0
SECOND_TRY_SECONDS = 0.5
LIST_SECONDS = 3.0


class OpenAIEngine:
    """An engine reached by ``LLM_ENGINE_URL``. Nothing is started here, so nothing is restarted.

    While it does not answer the capability does not serve, and it serves again as soon as the engine does. The worker
    goes on meanwhile: a fresh one would find the same engine.
    """

    name = "openai"
    concurrency = CONCURRENCY
    abilities = ALL_ABILITIES

    def __init__(
        self,
        settings: LlmSettings,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._base = settings.engine_url.rstrip("/")
        self._model = "" if settings.model == DEMO else settings.model
        self._sleep = sleep
        self._failure: Unavailable | None = None
        self._watches: list[asyncio.Task[None]] = []
        self._load_watch = LoadWatch(self._metrics, sleep=sleep)
        key = settings.engine_api_key.get_secret_value()
        self._client = http_client(
            stall_seconds=settings.stall_seconds,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            transport=transport,
        )

    async def start(self) -> Served:
        """Wait until the server answers, however long that takes: somebody else starts it.

        Raises:
            ModelUnusable: it answers, and does not serve the model, or refuses the credentials.
        """
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                models = await self._models()
                break
            except (Unavailable, ModelUnusable) as error:
                if error.reason == "ENGINE_CREDENTIALS":
                    raise ModelUnusable(error.message, reason=error.reason) from None
                log.warning("waiting for the engine", extra=fields(url=self._base, reason=error.message))
                await self._sleep(pause)
                pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)
        names = [str(model["id"]) for model in models if "id" in model]
        self._model = self._choose(names)
        await self._load_watch.read()
        self._watches = [asyncio.create_task(self._feel_pulse())]
        if self._load_watch.load is not None:
            self._watches.append(asyncio.create_task(self._load_watch.run()))
        described = next((model for model in models if model.get("id") == self._model), {})
        context = described.get("max_model_len") or described.get("context_length")
        if not isinstance(context, int) or not 0 < context < 2**32:
            context = 0
        return Served(name=self._model, source="remote", context_tokens=context)

    def _choose(self, names: list[str]) -> str:
        if self._model and (not names or self._model in names):
            return self._model
        if not self._model and len(names) == 1:
            return names[0]
        raise ModelUnusable(
            f"Set LLM_MODEL to one of the models that the engine serves: {', '.join(names[:20]) or 'it names none'}.",
            reason="MODEL_NOT_FOUND",
        )

    async def prepare(self, request: Generation) -> Generation:
        """The request with its ``max_tokens`` bounded; whether it fits the context is the engine's to say."""
        wanted = request.sampling.max_tokens
        return replace(
            request, sampling=replace(request.sampling, max_tokens=wanted or self._settings.max_output_tokens)
        )

    async def generate(self, request: Generation) -> AsyncGenerator[EngineEvent, None]:
        """Write by the engine. Raises MeshError."""
        route, body = input_of(request)
        body |= options_of(request) | {"model": self._model, "stream_options": {"include_usage": True}}
        async with aclosing(stream(self._client, self._base + route, body)) as written:
            async for event in written:
                yield event

    async def count(self, request: Generation) -> int:
        """Tokens of the prompt, where the server tells them. Raises MeshError."""
        return await count_tokens(self._client, self._base.removesuffix("/v1"), request, self._model)

    async def prove(self) -> None:
        """Nothing: the pulse asks all the while, and a generation every few seconds would cost somebody money."""

    def unhealthy(self) -> MeshError | None:
        """Why the engine does not answer; None while it does."""
        return self._failure

    async def _feel_pulse(self) -> None:
        """Ask for the list of models for ever; one answer that went lost is no reason to stop serving."""
        missed = 0
        while True:
            await self._sleep(SECOND_TRY_SECONDS if missed == 1 else BEAT_SECONDS)
            try:
                await self._models()
                missed, self._failure = 0, None
            except Unavailable as error:
                missed += 1
                if missed > 1:
                    self._failure = error
            except Exception:
                # The watch itself must not end, or nobody would notice the next failure.
                log.exception("the engine could not be asked")

    def load(self) -> EngineLoad | None:
        """What its metrics say; None where it publishes none that are known, as vLLM does."""
        return self._load_watch.load

    def families(self) -> Iterable[Metric]:
        """The metrics that it publishes, where they are vLLM's."""
        return self._load_watch.families() if self._load_watch.load is not None else ()

    def version(self) -> str:
        """Not known."""
        return ""

    async def stop(self) -> None:
        """End the watch and close the connections."""
        for task in self._watches:
            task.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await self._client.aclose()

    async def _metrics(self) -> str:
        """Metrics as vLLM serves them, beside its ``/v1``."""
        response = await self._client.get(self._base.removesuffix("/v1") + "/metrics", timeout=LIST_SECONDS)
        response.raise_for_status()
        return response.text

    async def _models(self) -> list[dict[str, Any]]:
        """The engine's list; empty where it keeps none."""
        try:
            response = await self._client.get(self._base + "/models", timeout=LIST_SECONDS)
        except httpx.HTTPError:
            raise Unavailable("The engine does not answer.", reason="ENGINE_UNREACHABLE", retry_after=2.0) from None
        if response.status_code == httpx.codes.NOT_FOUND:
            return []
        if response.status_code != httpx.codes.OK:
            failure = refusal(response.status_code, response.content[:20_000], response.headers)
            raise failure if isinstance(failure, Unavailable) else Unavailable(failure.message, reason=failure.reason)
        try:
            listed = response.json().get("data", [])
            return [model for model in listed if isinstance(model, dict)]
        except (ValueError, AttributeError, TypeError):
            raise Unavailable("The engine's list of models cannot be read.", reason="ENGINE_UNAVAILABLE") from None
