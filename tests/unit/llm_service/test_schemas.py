"""A JSON schema that is none is refused before an engine sees it."""

from __future__ import annotations

import json

import pytest

from llm_service.generation import Generation, Message, Role
from llm_service.schemas import check_schemas
from mesh.errors import InvalidRequest
from mesh.generation import ResponseFormat, Tool

HELLO = (Message(Role.USER, "Hello"),)
LARGE = {f"field{number}": {"type": "string"} for number in range(300)}


@pytest.mark.parametrize("large", [{}, LARGE], ids=["small", "large"])
async def test_a_schema_that_is_none_is_refused(large: dict[str, object]) -> None:
    """The place at fault is told; large ones are looked at as closely as small ones."""
    schema = json.dumps({"type": "object", "properties": {**large, "a": {"type": "strnig"}}})
    with pytest.raises(InvalidRequest, match="properties/a/type") as caught:
        await check_schemas(Generation(messages=HELLO, response_format=ResponseFormat(schema, "answer")))
    assert (caught.value.param, caught.value.reason) == ("response_format", "INVALID_JSON_SCHEMA")


async def test_the_tool_at_fault_is_named() -> None:
    """By its position."""
    with pytest.raises(InvalidRequest) as caught:
        await check_schemas(
            Generation(messages=HELLO, tools=(Tool("a"), Tool("b", parameters='{"required": "everything"}')))
        )
    assert caught.value.param == "tools[1].parameters"


async def test_a_sound_schema_passes() -> None:
    """Also one that refers to itself."""
    schema = json.dumps({"$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"})
    await check_schemas(Generation(messages=HELLO, tools=(Tool("a", parameters=schema),)))
    await check_schemas(Generation(messages=HELLO, response_format=ResponseFormat()))
