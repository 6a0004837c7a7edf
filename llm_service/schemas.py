"""Whether a request's JSON schemas are schemas at all: an engine finds out late, and does not always survive it."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from llm_service.generation import Generation
from mesh.generation.bounds import broken_schema

# One at a time, and not in the pool that everybody shares: a large one takes a second or two.
_CHECKER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="schemas")
_REMEMBERED = 128


async def check_schemas(request: Generation) -> None:
    """Check every schema of a request that is within its bounds, off the event loop.

    Raises:
        InvalidRequest: reason INVALID_JSON_SCHEMA, with the field as ``param``.
    """
    schemas = [(tool.parameters, f"tools[{index}].parameters") for index, tool in enumerate(request.tools)]
    if request.response_format is not None:
        schemas.append((request.response_format.schema or "", "response_format"))
    schemas = [(text, param) for text, param in schemas if text]
    if schemas:
        await asyncio.get_running_loop().run_in_executor(_CHECKER, _check, schemas)


def _check(schemas: list[tuple[str, str]]) -> None:
    for text, param in schemas:
        if (fault := _fault(text)) is not None:
            raise broken_schema(fault, param)


@lru_cache(_REMEMBERED)  # callers send the same tools with each of their requests
def _fault(text: str) -> str | None:
    """What is wrong with a schema; None where nothing is."""
    # Imported at the first need: most requests have no schema.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(json.loads(text))
    except SchemaError as error:
        where = "/".join(map(str, error.absolute_path))[:200]
        return f"what stands at {where} is none" if where else "it is none"
    except RecursionError:
        return "it is nested too deeply"
    return None
