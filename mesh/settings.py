"""Settings models that several processes share. Each process reads its model once, at its start."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# Names that an orchestrator or the gateway's own settings put beside ours: EMBEDDING_SERVICE_URL is the gateway's,
# EMBEDDING_SERVICE_HOST and EMBEDDING_PORT_50051_TCP are what Kubernetes injects for a service called "embedding".
_FOREIGN = re.compile(r"_SERVICE_(URL|HOST|PORT)(_|$)|_PORT_\d+_(TCP|UDP)")


EXIT_SETTINGS = 78
"""EX_CONFIG, the exit code of a process whose settings are wrong: starting it again changes nothing."""


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Several names in one variable, separated by commas."""


class SettingsError(ValueError):
    """A setting is unknown, misspelt or out of bounds. The message names the nearest right one."""


class MeshSettings(BaseSettings):
    """Base of every process's settings: frozen, typed, and strict about names.

    A variable that begins with the model's prefix and names no field stops the start: a misspelt limit that is silently
    ignored is found in production.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_ignore_empty=True)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """Read the settings from the environment, ``overrides`` above it.

        Raises:
            SettingsError: a name is unknown or a value is out of bounds; the text is for the operator.
        """
        refuse_misspelt(cls, os.environ if environ is None else environ)
        try:
            return cls(**overrides)
        except ValueError as error:
            raise SettingsError(_explain(cls, error)) from error

    @classmethod
    def variable(cls, field: str) -> str:
        """The environment variable that sets ``field``."""
        return f"{cls.model_config.get('env_prefix', '')}{field}".upper()


def refuse_misspelt(model: type[BaseSettings], environ: Mapping[str, str]) -> None:
    """Raise SettingsError where ``environ`` holds a variable with the model's prefix that names none of its fields."""
    prefix = str(model.model_config.get("env_prefix", "")).upper()
    known = {f"{prefix}{name}".upper() for name in model.model_fields}
    for name in sorted(environ):
        upper = name.upper()
        if prefix and upper.startswith(prefix) and upper not in known and not _FOREIGN.search(upper):
            raise SettingsError(f"Unknown setting {name}.{nearest(upper, known)}")


def nearest(name: str, known: set[str]) -> str:
    """A sentence that names the closest of ``known``, or lists them all where none is close."""
    # What all names begin with makes any two look alike.
    first, last = min(name, *known), max(name, *known)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    by_rest = {each[shared:]: each for each in known}
    close = difflib.get_close_matches(name[shared:], sorted(by_rest), n=1, cutoff=0.6)
    return f" Did you mean {by_rest[close[0]]}?" if close else f" Known: {', '.join(sorted(known))}."


def _explain(model: type[MeshSettings], error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    lines = []
    for item in errors(include_url=False, include_input=False):
        field = ".".join(str(part) for part in item["loc"])
        lines.append(f"{model.variable(field)} ({field}): {item['msg']}")
    return "; ".join(lines)


class WorkerSettings(MeshSettings):
    """What every worker can be told. A worker's own model adds its prefix and its fields."""

    host: str = Field("127.0.0.1", description="Address to listen on. Anything but loopback needs a network you trust.")
    port: int = Field(..., ge=0, le=65535, description="gRPC port; 0 lets the system choose one.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Port of the Prometheus endpoint; 0 turns it off.")
    reflection: bool | None = Field(
        None,
        description="Offer gRPC reflection, so that grpcurl can list and call methods. Unset: offered in plaintext, "
        "not behind TLS.",
    )
    drain_notice_seconds: float = Field(
        1.0, ge=0, le=60, description="Time between saying NOT_SERVING and refusing new calls, so that clients see it."
    )
    drain_grace_seconds: float = Field(
        10.0, ge=0, le=3600, description="Time that admitted calls get to finish after SIGTERM."
    )
    default_deadline_seconds: float = Field(
        30.0, gt=0, le=3600, description="Deadline of a call that came without one."
    )
    max_message_bytes: int = Field(
        16 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024, description="Largest gRPC message taken or sent, in bytes."
    )
    watchdog_seconds: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="An engine without progress for longer than this is given up: the process exits.",
    )
    canary_interval_seconds: float = Field(
        15.0, gt=0, le=3600, description="An idle capability proves itself by one real inference this often."
    )
    canary_seconds: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="An engine that takes longer for this inference is given up: the process exits. 0 means the "
        "watchdog's limit.",
    )
    canary_retry_seconds: float = Field(
        15.0,
        gt=0,
        le=3600,
        description="Pause after a failed canary, until the next one. Three in a row are the end: the process exits.",
    )
    log_format: Literal["text", "json"] = Field("text", description="Log lines for people (text) or machines (json).")
