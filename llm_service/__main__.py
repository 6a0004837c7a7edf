"""``python -m llm_service``: the LLM worker, configured by ``LLM_…`` variables."""

from __future__ import annotations

from llm_service.engines import Engine
from llm_service.servicer import SERVICE, LlmServicer
from llm_service.settings import LlmSettings
from llm_service.writer import Limits, Names, Writer
from mesh.serving import Capability, run


def make_engine(settings: LlmSettings) -> Engine:
    """The engine that the settings name."""
    match settings.engine:
        case "openai":
            from llm_service.engines.openai import OpenAIEngine

            return OpenAIEngine(settings)
        case "vllm":
            from llm_service.engines.vllm import VllmEngine

            return VllmEngine(settings)
        case "llamacpp":
            from llm_service.engines.llamacpp import LlamaCppEngine

            return LlamaCppEngine(settings)
        case "transformers":
            from llm_service.engines.transformers import TransformersEngine

            return TransformersEngine(settings)


def make_capability(settings: LlmSettings, engine: Engine | None = None) -> Capability:
    """The worker's one capability. Called on the event loop or before it; the engine starts with ``start``.

    Args:
        settings: what the worker was told.
        engine: in place of the one that the settings name.
    """
    writer = Writer(
        engine or make_engine(settings),
        limits=Limits(
            output_tokens=settings.max_output_tokens,
            concurrent=settings.max_concurrent_requests,
            queued=settings.max_queued_requests,
        ),
        names=Names(served=settings.served_model_name, aliases=settings.model_aliases),
    )
    servicer = LlmServicer(
        writer,
        default_deadline_seconds=settings.default_deadline_seconds,
        max_request_bytes=settings.max_message_bytes,
    )
    # No ``progress``: a long prompt on a CPU is silent for longer than any watchdog would wait, and the engine, a
    # process of its own, is restarted by its supervisor without ending this one.
    return Capability(
        service=SERVICE,
        register=servicer.register,
        start=writer.start,
        canary=writer.canary,
        unhealthy=writer.unhealthy,
        stop=writer.stop,
    )


def main() -> int:
    """Serve until told to end; returns the exit code."""
    return run("llm", LlmSettings, lambda settings: [make_capability(settings)])


if __name__ == "__main__":
    raise SystemExit(main())
