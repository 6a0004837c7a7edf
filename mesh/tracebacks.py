"""Tracebacks for logs, without the words of an exception that may have quoted a request.

Libraries put what they were given into their messages: a parser the text that it could not read, a validator the value
that it refused. Kinds and places tell what went wrong; the words would tell whose data it was.
"""

from __future__ import annotations

import os
import traceback

from mesh.errors import MeshError

_CAUSED = "\nThe above exception was the direct cause of the following exception:\n\n"
_DURING = "\nDuring handling of the above exception, another exception occurred:\n\n"
_LONGEST_CHAIN = 10


def without_words(error: BaseException) -> str:
    """The traceback of an exception, and of those that led to it: kinds and places, and words only where nobody's data
    can be in them, which is what the system says of its own errors.

    >>> print(without_words(ValueError("my secret")))
    ValueError
    """
    text, told = "", 0
    current: BaseException | None = error
    while current is not None and told < _LONGEST_CHAIN:
        text = _one(current) + text
        told += 1
        if current.__cause__ is not None:
            current, text = current.__cause__, _CAUSED + text
        elif current.__context__ is not None and not current.__suppress_context__:
            current, text = current.__context__, _DURING + text
        else:
            current = None
    return text.rstrip("\n")


def _one(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__))
    heading = "Traceback (most recent call last):\n" if frames else ""
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    inside = "".join(f"\n{without_words(each)}\n" for each in members)
    return f"{heading}{frames}{_kind(error)}\n{inside}"


def _kind(error: BaseException) -> str:
    cls = type(error)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    if isinstance(error, MeshError):
        return f"{name}: {error.reason}"
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return f"{name}: [Errno {error.errno}] {os.strerror(error.errno)}"
    return name
