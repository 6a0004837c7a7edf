"""Whether a request's JSON schemas are schemas at all: an engine finds out late, and does not always survive it."""

from __future__ import annotations

import asyncio
import json

from llm_service.generation import Generation
from mesh.errors import InvalidRequest
from mesh.generation.bounds import broken_schema

_QUICK_CHARACTERS = 4_000


async def check_schemas(request: Generation) -> None:
    """Check every schema of a request that is within its bounds; large ones on a thread.

    Raises:
        InvalidRequest: reason INVALID_JSON_SCHEMA, with the field as ``param``.
    """
    schemas = [(tool.parameters, f"tools[{index}].parameters") for index, tool in enumerate(request.tools)]
    if request.response_format is not None:
        schemas.append((request.response_format.schema or "", "response_format"))
    schemas = [(text, param) for text, param in schemas if text]
    if not schemas:
        return
    if sum(len(text) for text, _ in schemas) <= _QUICK_CHARACTERS:
        _check(schemas)
    else:
        await asyncio.to_thread(_check, schemas)


def _check(schemas: list[tuple[str, str]]) -> None:
    # Imported at the first need: most requests have no schema.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    for text, param in schemas:
        try:
            Draft202012Validator.check_schema(json.loads(text))
        except SchemaError as error:
            where = "/".join(map(str, error.absolute_path))[:200]
            raise _broken(where, param) from None
        except RecursionError:
            raise broken_schema("it is nested too deeply", param) from None


def _broken(where: str, param: str) -> InvalidRequest:
    return broken_schema(f"what stands at {where} is none" if where else "it is none", param)
