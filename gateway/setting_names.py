"""The names that settings of the gateway may have, and what is said of one that is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gateway.vector_cache.settings import VECTOR_CACHE_VARIABLES
from mesh.settings import SettingsError, nearest

SERVICE_URL_VARIABLES = {
    "GPU_SERVICE_URL": "gpu",
    "EMBEDDING_SERVICE_URL": "embedding",
    "RERANKING_SERVICE_URL": "reranking",
    "LLM_SERVICE_URL": "llm",
}
"""The variables of the migration guide, and the service each one points."""


def refuse_misspelt_variables(model: type[BaseModel], environ: Mapping[str, str]) -> None:
    """Raise SettingsError where a variable of the environment is meant for the gateway, and names nothing of it."""
    paths = dict(_paths(model, "GATEWAY_"))
    for name in sorted(environ):
        upper = name.upper()
        if upper.startswith("GATEWAY_") and upper not in paths and not _injected(upper):
            open_ended = any(upper.startswith(f"{path}__") for path, is_open in paths.items() if is_open)
            if not open_ended:
                raise SettingsError(f"Unknown setting {name}.{nearest(upper, set(paths))}")
        # Other programs have service URLs too: only what looks like a slip of the pen stops the start.
        is_strange = upper.endswith("_SERVICE_URL") and upper not in SERVICE_URL_VARIABLES
        if is_strange and get_close_matches(upper, SERVICE_URL_VARIABLES, n=1, cutoff=0.88):
            raise SettingsError(f"Unknown setting {name}.{nearest(upper, set(SERVICE_URL_VARIABLES))}")
        if upper.startswith(("VECTOR_CACHE_", "ENABLE_VECTOR_")) and upper not in VECTOR_CACHE_VARIABLES:
            raise SettingsError(f"Unknown setting {name}.{nearest(upper, set(VECTOR_CACHE_VARIABLES))}")


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """What is wrong with settings, for the operator: each by its key and its variable; with the nearest right name."""
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        path = [str(part) for part in item["loc"]]
        key = ".".join(["gateway", *path])
        if item["type"] == "extra_forbidden":
            siblings = set(_model_at(model, path[:-1]).model_fields)
            lines.append(f"Unknown setting {key}.{nearest(path[-1], siblings)}")
        else:
            lines.append(f"{key} (GATEWAY_{'__'.join(path).upper()}): {item['msg']}")
    return "; ".join(lines)


def _paths(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, bool]]:
    """Every settable variable below ``prefix``, and whether anything may follow it."""
    for name, field in model.model_fields.items():
        section = _section_of(field)
        path = f"{prefix}{name}".upper()
        yield path, section is None and "dict" in str(field.annotation)
        if section is not None:
            yield from _paths(section, f"{path}__")


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field is; None for a plain field, and for one that holds sections by names."""
    if get_origin(field.annotation) is dict:
        return None
    return _kind_of_section(field)


def _kind_of_section(field: FieldInfo) -> type[BaseModel] | None:
    """The same, and for sections by names what they are."""
    candidates = (field.annotation, *getattr(field.annotation, "__args__", ()))
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _injected(name: str) -> bool:
    """Whether Kubernetes made this variable for a service called "gateway"."""
    return name.startswith(("GATEWAY_SERVICE_", "GATEWAY_PORT_"))


def _model_at(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    for part in path:
        field = model.model_fields.get(part)
        if field is None:
            continue  # a name among several sections of one kind
        section = _kind_of_section(field)
        if section is None:
            break
        model = section
    return model
