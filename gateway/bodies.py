"""Reads and validates a request's JSON body. Every way in which a body can be wrong ends in one typed error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from gateway.exchange import Exchange
from gateway.json_items import require_few_items
from mesh.errors import InvalidBody, InvalidRequest
from mesh.settings import nearest

# Lists stop at their first bad item: one error per item of a 16 MiB body would cost more than the body.
Texts = Annotated[list[str], Field(fail_fast=True)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**32 - 1)]], Field(fail_fast=True)]
TokenLists = Annotated[list[TokenIds], Field(fail_fast=True)]
ModelName = Annotated[str, Field(max_length=512)]

_NOTHING: tuple[Any, ...] = ("", [])
_SHOWN_ERRORS = 3
_SHOWN_NAME = 64


class VendorBody(BaseModel):
    """A body in a vendor's dialect: types are strict, and fields that are not known here are ignored as theirs are."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class OwnBody(BaseModel):
    """A body of our own dialect: types are strict, and the first unknown field is named."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _name_the_unknown(cls, data: object) -> object:
        # Not pydantic's own "forbid": it keeps an error for each of a million unknown fields.
        known = set(cls.model_fields)
        unknown = next((key for key in data if key not in known), None) if isinstance(data, dict) else None
        if unknown is not None:
            shown = unknown[:_SHOWN_NAME]
            raise InvalidBody(f"There is no field {shown}.{nearest(shown, known)}", param=shown)
        return data


Body = TypeVar("Body", bound=BaseModel)


async def read_json(request: Request, model: type[Body]) -> Body:
    """The request's body as ``model``.

    Raises:
        InvalidRequest: it is not declared as JSON, is compressed, is empty, or is not JSON in UTF-8.
        InvalidBody: it is JSON that does not validate; ``param`` names the first field at fault.
        PayloadTooLarge: it holds more items than are read at once.
    """
    exchange = Exchange.of(request)
    media_type = exchange.header(b"content-type").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        # Browsers send other types across sites without asking; a JSON type they must ask for first.
        raise InvalidRequest(
            f"Send the body as application/json; it came as {media_type or 'no type at all'}.",
            reason="UNSUPPORTED_MEDIA_TYPE",
        )
    if exchange.header(b"content-encoding").strip().lower() not in {"", "identity"}:
        # Nothing is inflated: a kilobyte may hold a megabyte, and the caps count what was sent.
        raise InvalidRequest("Send the body uncompressed.", reason="UNSUPPORTED_MEDIA_TYPE")
    return parse_json(await _whole_body(request), model)


async def _whole_body(request: Request) -> bytes:
    """The body, which nearly always comes in one message: no generator and no joining for it."""
    message = await request.receive()
    pieces = [message.get("body", b"")]
    while message["type"] == "http.request" and message.get("more_body", False):
        message = await request.receive()
        pieces.append(message.get("body", b""))
    if message["type"] != "http.request":
        raise ClientDisconnect
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def parse_json(body: bytes, model: type[Body]) -> Body:
    """Like `read_json`, for bytes that are at hand."""
    if not body.strip():
        raise InvalidRequest("The body is empty; send a JSON object.", reason="INVALID_JSON")
    require_few_items(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise explain(error, model) from None


def explain(error: ValidationError, model: type[BaseModel]) -> InvalidRequest:
    """One sentence about what does not validate, in the caller's words; never the values that were sent."""
    details = error.errors(include_url=False, include_input=False, include_context=False)
    first = details[0]
    if first["type"] == "json_invalid":
        return InvalidRequest(f"The body is not JSON in UTF-8: {_plain(first['msg'])}.", reason="INVALID_JSON")
    if not first["loc"]:
        return InvalidBody(f"The body must be a JSON object with the fields {', '.join(model.model_fields)}.")
    fields = list(dict.fromkeys(str(detail["loc"][0]) for detail in details))
    sentences = [_sentence(field, details, model) for field in fields[:_SHOWN_ERRORS]]
    if len(fields) > _SHOWN_ERRORS:
        sentences.append(f"{len(fields) - _SHOWN_ERRORS} more fields are wrong.")
    same_field = [detail for detail in details if str(detail["loc"][0]) == fields[0]]
    return InvalidBody(" ".join(sentences), param=_param(same_field))


def _sentence(field: str, details: Sequence[ErrorDetails], model: type[BaseModel]) -> str:
    mine = [detail for detail in details if str(detail["loc"][0]) == field]
    first = mine[0]
    known = model.model_fields.get(field)
    if len(mine) > 1 and known is not None and known.description:
        # Every alternative of a union fails in words of its own; the field's description says what all of them want.
        return f"{field} must be {known.description}."
    return f"{_param(mine)}: {_plain(first['msg'])}."


def _param(details: Sequence[ErrorDetails]) -> str:
    if len(details) > 1:
        return str(details[0]["loc"][0])
    return ".".join(str(part) for part in details[0]["loc"])


def _plain(message: str) -> str:
    return message.removeprefix("Invalid JSON: ").removeprefix("Value error, ").rstrip(".")


def require_not_empty(value: str | Sequence[Any], param: str) -> None:
    """Refuse an empty text, an empty list, or a list with an empty item: no model can answer it.

    Raises:
        InvalidRequest: with the reason EMPTY_INPUT and the position.
    """
    if len(value) == 0:
        raise InvalidRequest(f"{param} is empty; send at least one.", param=param, reason="EMPTY_INPUT")
    # Looked for in C: a request may hold thousands of texts.
    if not isinstance(value, str) and ("" in value or [] in value):
        where = f"{param}[{next(position for position, item in enumerate(value) if item in _NOTHING)}]"
        raise InvalidRequest(f"{where} is empty; leave it out.", param=where, reason="EMPTY_INPUT")


def require_at_most(count: int, limit: int, param: str) -> None:
    """Refuse more items than one request may hold.

    Raises:
        InvalidRequest: with the reason TOO_MANY_INPUTS and both numbers.
    """
    if count > limit:
        raise InvalidRequest(
            f"{param} holds {count:,} items; one request takes at most {limit:,}. Split it.",
            param=param,
            reason="TOO_MANY_INPUTS",
        )
