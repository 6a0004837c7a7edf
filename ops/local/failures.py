"""The one error that these commands end with."""

from __future__ import annotations


class OperatorError(Exception):
    """Something that the person at the keyboard can put right. The message says what, the hint says how."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
