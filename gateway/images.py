"""Images inside of requests: bytes in base64. A URL is never fetched, by whoever asks."""

from __future__ import annotations

import base64
import binascii

from gateway.generation import unsupported
from mesh.errors import InvalidRequest
from mesh.generation import Image
from mesh.generation.bounds import IMAGE_TYPES


def image_of_url(url: object, detail: object, where: str) -> Image:
    """The image that a ``data:`` URL holds.

    Raises:
        InvalidRequest: it is another URL, or does not hold an image in base64.
    """
    if not isinstance(url, str) or not url.startswith("data:"):
        raise unsupported(
            f"{where} is an image somewhere else, and nothing is fetched here; send it as data:image/png;base64,….",
            where,
        )
    head, _, data = url.removeprefix("data:").partition(",")
    media_type, _, encoding = head.partition(";")
    if encoding != "base64":
        raise InvalidRequest(f"{where} must hold its image in base64.", param=where, reason="INVALID_IMAGE")
    return image_of_base64(data, media_type, where, detail=detail if isinstance(detail, str) else "")


def image_of_base64(data: object, media_type: object, where: str, *, detail: str = "") -> Image:
    """The image that base64 text holds.

    Raises:
        InvalidRequest: it is no base64, or of no known kind.
    """
    if media_type not in IMAGE_TYPES or not isinstance(media_type, str):
        raise InvalidRequest(f"{where} must be one of {', '.join(IMAGE_TYPES)}.", param=where, reason="INVALID_IMAGE")
    try:
        decoded = base64.b64decode(data if isinstance(data, str) else "", validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded:
        raise InvalidRequest(f"{where} holds no image in base64.", param=where, reason="INVALID_IMAGE")
    return Image(decoded, media_type, detail if detail in {"low", "high"} else "")
