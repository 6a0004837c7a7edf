"""Which JSON schemas llama.cpp's grammars hold an answer to. What they do not know they leave out in silence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mesh.generation.bounds import broken_schema

_REMARKS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$schema", "$id"}
_REMARKS |= {"$comment", "$defs", "definitions"}
_PLAIN = ("string", "integer", "number", "boolean", "null", "object", "array")


def require_grammar(schema: str, param: str) -> None:
    """Refuse a schema that an answer would only seem to follow.

    Args:
        schema: a JSON object that is a schema, as text.
        param: the field that holds it.

    Raises:
        InvalidRequest: reason INVALID_JSON_SCHEMA, with what cannot be kept.
    """
    for part in _parts(json.loads(schema)):
        if why := _why_not(part):
            raise broken_schema(f"the engine in use cannot hold an answer to {why}", param)


def _why_not(part: Any) -> str:
    """What of this part a grammar would leave out; empty where that is nothing."""
    if not isinstance(part, dict):
        return "true or false in place of a schema"
    if not part:
        return ""
    for word in sorted(part.keys() - _REMARKS - _kept(part)):
        return f"{word[:100]!r} there"
    if not str(part.get("$ref", "#/")).startswith("#/"):
        return "a $ref that leads elsewhere"
    if set(part.get("required", ())) - set(part.get("properties", ())):
        return "a required property without a description"
    return "" if _kept(part) & part.keys() else "a part without a type"


def _kept(part: Mapping[str, Any]) -> set[str]:
    """The keywords that a grammar is made from: of each part, what comes first here."""
    kind = part.get("type")
    if alone := next((word for word in ("$ref", "oneOf", "anyOf") if word in part), None):
        return {alone}
    kept = {"type"} if isinstance(kind, list) or kind in _PLAIN else set()
    if isinstance(kind, list):
        return kept
    if fixed := next((word for word in ("const", "enum") if word in part), None):
        kept |= {"type", fixed}
    elif kind in (None, "object") and ("properties" in part or "additionalProperties" in part):
        kept |= {"type", "properties", "required", "additionalProperties"}
    elif kind in (None, "array") and "items" in part:
        kept |= {"type", "items", "minItems", "maxItems"}
    elif kind == "string":
        kept |= {"format"} if "format" in part else {"minLength", "maxLength"}
    return kept


def _parts(schema: Any) -> Iterator[Any]:
    """The schema and all that it is made of."""
    yield schema
    if not isinstance(schema, dict):
        return
    inner = [schema["items"]] if "items" in schema else []
    if isinstance(schema.get("additionalProperties"), dict):
        inner.append(schema["additionalProperties"])
    for name in ("properties", "$defs", "definitions"):
        inner += (schema.get(name) or {}).values()
    for name in ("anyOf", "oneOf"):
        inner += schema.get(name) or []
    for each in inner:
        yield from _parts(each)
