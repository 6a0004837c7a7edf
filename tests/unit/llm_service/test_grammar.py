"""Only schemas that a grammar holds an answer to as a whole are let through."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_service.grammar import require_grammar
from mesh.errors import InvalidRequest


def of(**properties: Any) -> dict[str, Any]:
    """An object with these properties, all required."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        of(),
        of(name={"type": "string", "minLength": 1, "maxLength": 20}, age={"type": ["integer", "null"]}),
        of(tags={"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3}),
        of(when={"type": "string", "format": "date-time", "description": "When."}, kind={"const": "x"}),
        of(child={"$ref": "#/$defs/C"}) | {"$defs": {"C": of(n={"anyOf": [{"type": "number"}, {"type": "null"}]})}},
        {"type": "object", "additionalProperties": {"type": "boolean"}},
        {"properties": {"anything": {}}, "title": "T"},
        {"items": {"type": "integer"}},
    ],
)
def test_what_a_grammar_can_say_is_taken(schema: dict[str, Any]) -> None:
    """What Pydantic and the SDKs make of ordinary classes."""
    require_grammar(json.dumps(schema), "response_format")


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (of(n={"type": "integer", "minimum": 3}), "minimum"),
        (of(n={"type": "string", "pattern": "^a+$"}), "pattern"),
        (of(n={"type": "string", "format": "date", "maxLength": 3}), "maxLength"),
        (of(n={"type": "array", "minItems": 2}), "minItems"),
        (of(n={"type": "array", "prefixItems": [{"type": "string"}]}), "prefixItems"),
        (of(n={"anyOf": [{"type": "object"}], "required": ["a"]}), "required"),
        (of(n={"type": ["string", "null"], "enum": ["a", None]}), "enum"),
        (of(n={"anyOf": [{"type": "string", "not": {"const": "b"}}]}), "not"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]}, "required property"),
        ({"type": "object", "required": ["b"]}, "required"),
        ({"allOf": [{"type": "object"}]}, "allOf"),
        (of(n={"$ref": "https://example.com/schema"}), "elsewhere"),
        (of(n=True), "true or false"),
        (of(n={"description": "Anything."}), "without a type"),
        (of(n={"type": "array", "items": {"type": "number", "multipleOf": 2}}), "multipleOf"),
        ({"type": "object", "additionalProperties": {"type": "string", "pattern": "^$"}}, "pattern"),
    ],
)
def test_what_it_would_leave_out_is_refused_by_name(schema: dict[str, Any], named: str) -> None:
    """An answer that only seems to follow its schema is worse than none."""
    with pytest.raises(InvalidRequest, match="response_format") as caught:
        require_grammar(json.dumps(schema), "response_format")
    assert caught.value.reason == "INVALID_JSON_SCHEMA"
    assert named in caught.value.message
